"""EXIF orientation, read tolerantly: phones, editors and cameras write odd tags, and none is worth an image.

Anything but 2 to 8 is upright. Turning never writes EXIF again, so no other tag can get in the way.
"""

from __future__ import annotations

from PIL import Image

ORIENTATION = 0x0112  # the tag; 1 = upright
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def orientation(image: Image.Image) -> int:
    """2 to 8 where the image's EXIF says so, else 1."""
    try:
        value = image.getexif().get(ORIENTATION, 1)
    except Exception:  # Pillow's parser raises a dozen types on odd tags
        return 1
    return value if isinstance(value, int) and value in TURNS else 1


def turned(image: Image.Image, turn: int) -> Image.Image:
    """The image as viewers show it, for an orientation of `orientation`."""
    return image.transpose(TURNS[turn]) if turn in TURNS else image


def has_exif_segment(data: bytes) -> bool:
    """Whether an APP1 segment with EXIF stands before the scan of a JPEG (ITU-T T.81, B.1.1.4)."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # padding
            at += 1
            continue
        if marker in (0xDA, 0xD9):  # start of scan, end of image
            return False
        if marker == 0xE1 and data[at + 4 : at + 10] == b"Exif\x00\x00":
            return True
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return True  # not the order that we know: let the parser look
