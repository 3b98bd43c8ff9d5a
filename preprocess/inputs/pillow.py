"""Pillow as a decoder that judges before it allocates and has one way to fail.

Pillow warns of large images by its own limit and raises half a dozen types on broken files; here the limit is
that of the format, and every fault is a RejectedInput.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image

from maskshards.preprocess.errors import RejectedInput
from maskshards.shards.format.rle import MAX_PIXELS

FAULTS = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)


@contextmanager
def opened(data: bytes, formats: tuple[str, ...]) -> Iterator[Image.Image]:
    """The image in `data`, header read, pixels not yet; RejectedInput for faults here and in the block."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=list(formats))
        with image:
            check_size(image.height, image.width)
            yield image
    except FAULTS as error:
        if isinstance(error, RejectedInput):
            raise
        raise RejectedInput(f"it does not decode ({error}); get a good copy of the file") from error


def check_size(height: int, width: int) -> None:
    """RejectedInput unless an image of that size may be decoded."""
    if height < 1 or width < 1 or height * width > MAX_PIXELS:
        raise RejectedInput(
            f"the header claims {width}x{height} pixels; 1 to {MAX_PIXELS} are allowed; scale the image down"
        )
