"""The few facts of a PNG that are needed before any decoder may touch it, and its checksums.

Pillow widens 1, 2 and 4 bit samples to 8 bits (grey values get scaled on the way), reads 16 bits in three
ways, allocates the size that the header claims, and looks at no checksum of pixel data, so that a flipped bit
of a label map comes out as other labels. So the header is read here, from the first bytes, and judged before
anything is decoded.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

from maskshards.preprocess.errors import RejectedInput

ANCILLARY = 0x20  # bit of the first letter of a chunk's name: pixels do not depend on it
SIGNATURE = b"\x89PNG\r\n\x1a\n"
GREY, RGB, PALETTE, GREY_ALPHA, RGB_ALPHA = 0, 2, 3, 4, 6
COLOUR_NAMES = {
    GREY: "grey",
    RGB: "RGB",
    PALETTE: "palette",
    GREY_ALPHA: "grey with alpha",
    RGB_ALPHA: "RGB with alpha",
}


@dataclass(frozen=True, slots=True)
class PngHeader:
    height: int  # pixels
    width: int  # pixels
    bit_depth: int  # bits per sample: 1, 2, 4, 8 or 16
    colour: int  # one of the colour types named above
    transparent: bool  # a tRNS chunk stands before the pixels
    animated: bool  # an acTL chunk: more than one frame

    def __str__(self) -> str:
        return f"{self.bit_depth}-bit {COLOUR_NAMES[self.colour]} PNG"


def read_header(data: bytes) -> PngHeader:
    """Size, depth and colour type of a PNG, from its chunks up to the first pixel data.

    See the PNG specification, section 11.
    """
    if len(data) < 33 or data[:8] != SIGNATURE or data[12:16] != b"IHDR":
        raise RejectedInput(f"not a PNG file: it starts with {data[:8]!r} and has {len(data)} bytes")
    width, height, depth, colour = struct.unpack(">IIBB", data[16:26])
    if colour not in COLOUR_NAMES or depth not in (1, 2, 4, 8, 16) or not width or not height:
        raise RejectedInput(
            f"broken PNG header: {width}x{height} (width x height), depth {depth}, colour type {colour}"
        )
    names = _chunks_before_pixels(data)
    return PngHeader(height, width, depth, colour, b"tRNS" in names, b"acTL" in names)


def check_whole(data: bytes) -> None:
    """RejectedInput unless every chunk that matters to pixels is there and has its checksum, to the last."""
    at = 8
    while at + 12 <= len(data):
        (size,) = struct.unpack_from(">I", data, at)
        end = at + 8 + size
        name = data[at + 4 : at + 8]
        if end + 4 > len(data):
            break
        if (
            not name[0] & ANCILLARY
            and zlib.crc32(data[at + 4 : end]) != struct.unpack_from(">I", data, end)[0]
        ):
            raise RejectedInput(
                f"damaged PNG: chunk {name!r} at byte {at} has another checksum than it states; get a good"
                " copy of the file"
            )
        if name == b"IEND":
            return
        at = end + 4
    raise RejectedInput(f"truncated PNG: no end mark in its {len(data)} bytes; get a good copy of the file")


def _chunks_before_pixels(data: bytes) -> set[bytes]:
    names: set[bytes] = set()
    at = 8
    while at + 8 <= len(data):
        (size,) = struct.unpack_from(">I", data, at)
        name = data[at + 4 : at + 8]
        if name == b"IDAT":
            return names
        names.add(name)
        at += 12 + size
    raise RejectedInput("truncated PNG: the file ends before its first pixel")
