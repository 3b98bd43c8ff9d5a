"""Which image files may enter a shard as they are, and how the others are re-encoded on request.

The policy is one table (docs/custom-data.md shows it). What the loader decodes on every epoch must decode
here once, with the same library: a file that needs guesses (CMYK, alpha, 16 bits, EXIF rotation) is refused
with the way out, `--convert`. The header is judged before a decoder allocates anything, so neither a PNG
bomb nor a lying JPEG costs memory.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass

import numpy as np
import simplejpeg
from PIL import Image, ImageOps

from maskshards.preprocess.errors import RejectedInput
from maskshards.preprocess.inputs import png
from maskshards.preprocess.inputs.pillow import check_size, opened

JPEG_START = b"\xff\xd8\xff"
FOUR_INKS = ("CMYK", "YCCK")
JPEG_QUALITY = 95  # of re-encoded images; subsampling 4:4:4, so that colours keep their edges
RE_ENCODING = (
    f"JPEG quality {JPEG_QUALITY} 4:4:4, or PNG where the source is PNG; scaled by Lanczos, labels by nearest"
)
CONVERTIBLE = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")  # what --convert reads, by Pillow's names
WAY_OUT = "re-encode it to 8-bit RGB, or let the build do so with --convert"
ORIENTATION = 0x0112  # the EXIF tag; 1 = upright
_HARMLESS = re.compile(r"extraneous bytes before marker")  # padding between segments; no pixel depends on it


class DamagedImage(RejectedInput):
    """Pixels are lost, so that converting would only hide it."""


@dataclass(frozen=True, slots=True)
class ImagePolicy:
    """What the build may do to an image; the default keeps every byte."""

    convert: bool = False  # re-encode what the table refuses
    max_short_side: int = 0  # px; re-encode larger images so that the short side has this length; 0 = never
    prove: bool = True  # decode every image once; switched off by the benchmark alone


@dataclass(frozen=True, slots=True)
class Encoded:
    """An image as it goes into the shard."""

    data: bytes
    image_format: str  # "jpg" or "png"
    height: int  # pixels, upright
    width: int  # pixels, upright
    source_height: int  # pixels, upright, before any scaling; the label map must have this size
    source_width: int
    note: str = ""  # what was done to the source's bytes; '' = nothing


def encode_image(data: bytes, policy: ImagePolicy) -> Encoded:
    """The bytes to store for one source image, decoded once as a proof. RejectedInput names what was found
    and the way out.
    """
    if not data:
        raise RejectedInput("the image file is empty (0 bytes)")
    try:
        kept = _keep(data, policy.prove)
    except DamagedImage:
        raise
    except RejectedInput as refused:
        if not policy.convert:
            raise
        return _convert(data, policy, str(refused).split(";")[0])
    if policy.max_short_side and min(kept.height, kept.width) > policy.max_short_side:
        return _convert(data, policy, "")
    return kept


def _keep(data: bytes, prove: bool) -> Encoded:
    if data[:3] == JPEG_START:
        return _keep_jpeg(data, prove)
    if data[:8] == png.SIGNATURE:
        return _keep_png(data, prove)
    raise RejectedInput(f"{_format_name(data)} instead of JPEG or PNG; {WAY_OUT}")


def _keep_jpeg(data: bytes, prove: bool) -> Encoded:
    try:
        height, width, colour, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError as error:
        raise RejectedInput(f"JPEG header is broken or unusual ({error}); {WAY_OUT}") from error
    check_size(height, width)
    if colour not in ("YCbCr", "RGB", "Gray"):
        raise RejectedInput(f"{colour} JPEG; {WAY_OUT}")
    _check_upright(data)
    if prove:
        _prove_jpeg(data, colour)
    return Encoded(data, "jpg", height, width, height, width)


def _prove_jpeg(data: bytes, colour: str) -> None:
    """Decode at an eighth of the size: all coded data is read, which is what can be broken, at half the
    time.
    """
    try:
        simplejpeg.decode_jpeg(data, "CMYK" if colour in FOUR_INKS else "RGB", min_height=1, min_width=1)
    except ValueError as error:
        if not _HARMLESS.search(str(error)):
            raise DamagedImage(
                f"JPEG does not decode cleanly ({error}); get a good copy of the file"
            ) from error


def _keep_png(data: bytes, prove: bool) -> Encoded:
    header = png.read_header(data)
    check_size(header.height, header.width)
    if header.transparent or header.colour in (png.GREY_ALPHA, png.RGB_ALPHA):
        raise RejectedInput(f"{header} with transparency; {WAY_OUT}")
    if header.bit_depth != 8:
        raise RejectedInput(f"{header}; only 8 bits a channel are kept; {WAY_OUT}")
    if header.animated:
        raise RejectedInput(f"animated PNG; {WAY_OUT} (its first frame)")
    _check_upright(data)
    if prove:
        with opened(data, ("PNG",)) as image:
            image.load()
    return Encoded(data, "png", header.height, header.width, header.height, header.width)


def _check_upright(data: bytes) -> None:
    turn = _orientation(data)
    if turn != 1:
        raise RejectedInput(
            f"EXIF orientation {turn}: viewers turn this image, decoders do not; {WAY_OUT} (upright)"
        )


def _orientation(data: bytes) -> int:
    """The EXIF orientation, 1 where there is none; the parse is only paid for by files that carry EXIF."""
    if not (_has_exif_segment(data) if data[:2] == b"\xff\xd8" else b"eXIf" in data):
        return 1
    with opened(data, ("JPEG", "PNG")) as image:
        return int(image.getexif().get(ORIENTATION, 1))


def _has_exif_segment(data: bytes) -> bool:
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


def _convert(data: bytes, policy: ImagePolicy, reason: str) -> Encoded:
    """Upright 8-bit RGB: PNG stays PNG, everything else becomes a JPEG of quality 95 without chroma
    subsampling.
    """
    if data[:3] == JPEG_START:
        _prove_before_converting(data)
    with opened(data, CONVERTIBLE) as source:
        upright = _to_rgb(ImageOps.exif_transpose(source))
    image_format = "png" if data[:8] == png.SIGNATURE else "jpg"
    size = upright.height, upright.width
    height, width = scaled_size(*size, policy.max_short_side)
    scaled = (height, width) != size
    if scaled:
        upright = upright.resize((width, height), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    if image_format == "jpg":
        upright.save(out, "JPEG", quality=JPEG_QUALITY, subsampling=0)
        how = f"JPEG quality {JPEG_QUALITY} 4:4:4"
    else:
        upright.save(out, "PNG")
        how = "PNG"
    notes = [reason] if reason else []
    notes += [f"Lanczos to {width}x{height}"] if scaled else []
    note = f"re-encoded as {how} ({', '.join(notes)})"
    return Encoded(out.getvalue(), image_format, height, width, *size, note)


def _prove_before_converting(data: bytes) -> None:
    """Pillow paints over lost data without a word, so libjpeg is asked first, if it reads the header."""
    try:
        height, width, colour, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return
    check_size(height, width)
    _prove_jpeg(data, colour)


def _to_rgb(image: Image.Image) -> Image.Image:
    """Three 8-bit channels: 16-bit values lose their low byte, alpha is dropped without blending."""
    image.info.pop("transparency", None)
    if image.mode.startswith("I"):
        grey = np.asarray(image).astype(np.int64) >> 8
        return Image.fromarray(grey.clip(0, 255).astype(np.uint8)).convert("RGB")
    return image.convert("RGB")


def scaled_size(height: int, width: int, max_short_side: int) -> tuple[int, int]:
    """(height, width) with a short side of at most `max_short_side` px (0 = as it is), the other rounded
    half up.
    """
    short = min(height, width)
    if not max_short_side or short <= max_short_side:
        return height, width
    grown = (max(height, width) * 2 * max_short_side + short) // (2 * short)
    return (max_short_side, grown) if height <= width else (grown, max_short_side)


def _format_name(data: bytes) -> str:
    """What a file without a JPEG or PNG signature seems to be, for the message."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "a WebP file"
    for start, name in ((b"GIF8", "a GIF"), (b"BM", "a BMP"), (b"II*\x00", "a TIFF"), (b"MM\x00*", "a TIFF")):
        if data.startswith(start):
            return f"{name} file"
    return f"an unknown format (it starts with {data[:8]!r})"
