"""Pillow as a decoder that judges before it allocates and has one way to fail.

Pillow warns of large images by its own limit and raises half a dozen types on broken files; here the limit is
that of the format, or a larger one for images that are to be scaled or cut, and every fault is a
RejectedInput.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from PIL import Image

from maskshards.preprocess.errors import RejectedInput
from maskshards.shards.format.rle import MAX_PIXELS

_most_pixels: ContextVar[int] = ContextVar("most_pixels", default=0)  # 0 = that of the format
_OBJECT = re.compile(r"<\S+ object at 0x[0-9a-f]+>")


@contextmanager
def size_limit(most_pixels: int) -> Iterator[None]:
    """In the block, images and label maps of up to `most_pixels` may be decoded."""
    token = _most_pixels.set(most_pixels)
    try:
        yield
    finally:
        _most_pixels.reset(token)


@contextmanager
def opened(data: bytes, formats: tuple[str, ...]) -> Iterator[Image.Image]:
    """The image in `data`, header read, pixels not yet; RejectedInput for faults here and in the block.

    Only `formats` are tried, by Pillow's names: others bring parsers, and programs, that nobody asked for.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of large images, and of odd metadata that no pixel depends on
        try:
            with Image.open(io.BytesIO(data), formats=list(formats)) as image:
                check_size(image.height, image.width)
                yield image
        except (RejectedInput, MemoryError):
            raise
        except Exception as error:  # Pillow's parsers raise whatever they stumble over
            reason = _OBJECT.sub("in memory", str(error)) or type(error).__name__
            raise RejectedInput(f"it does not decode ({reason}); get a good copy of the file") from error


def check_size(height: int, width: int) -> None:
    """RejectedInput unless an image of that size may be decoded."""
    most = _most_pixels.get() or MAX_PIXELS
    if height < 1 or width < 1 or height * width > most:
        raise RejectedInput(
            f"the header claims {width}x{height} pixels; 1 to {most} are allowed; scale the image down"
            + ("" if _most_pixels.get() > MAX_PIXELS else " (--max-short-side), or cut it (--tile)")
        )
