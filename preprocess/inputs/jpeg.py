"""The proof that a JPEG decodes, by the library that the loader uses."""

from __future__ import annotations

import re

import simplejpeg

from maskshards.preprocess.errors import RejectedInput
from maskshards.preprocess.inputs.pillow import check_size

START = b"\xff\xd8\xff"
FOUR_INKS = ("CMYK", "YCCK")
_HARMLESS = re.compile(r"extraneous bytes before marker")  # padding between segments; no pixel depends on it


class DamagedImage(RejectedInput):
    """Pixels are lost, so that converting would only hide it."""


def prove_jpeg(data: bytes, colour: str) -> None:
    """DamagedImage unless all coded data is there.

    Decoded to grey at an eighth of the size: all of it is read, which is what can be broken, and in half the
    time.
    """
    try:
        simplejpeg.decode_jpeg(data, "CMYK" if colour in FOUR_INKS else "GRAY", min_height=1, min_width=1)
    except ValueError as error:
        if not _HARMLESS.search(str(error)):
            raise DamagedImage(
                f"JPEG does not decode cleanly ({error}); get a good copy of the file"
            ) from error


def prove_before_converting(data: bytes) -> None:
    """Pillow paints over lost data without a word, so libjpeg is asked first, if it reads the header."""
    try:
        height, width, colour, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return
    check_size(height, width)
    prove_jpeg(data, colour)
