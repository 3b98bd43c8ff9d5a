"""Which image files may enter a shard as they are, and how the others are re-encoded on request.

The policy is one table (docs/custom-data.md shows it). What the loader decodes on every epoch must decode
here once, with the same library: a file that needs guesses (CMYK, alpha, 16 bits, EXIF rotation) is refused
with the way out, `--convert`. The header is judged before a decoder allocates anything, so neither a PNG
bomb nor a lying JPEG costs memory.
"""

from __future__ import annotations

import simplejpeg

from maskshards.preprocess.errors import RejectedInput
from maskshards.preprocess.inputs import jpeg, png
from maskshards.preprocess.inputs.deep import SAY_SCALE
from maskshards.preprocess.inputs.formats import format_name, may_be_an_image
from maskshards.preprocess.inputs.image_policy import Encoded, ImagePolicy
from maskshards.preprocess.inputs.pillow import check_size, opened, size_limit
from maskshards.preprocess.inputs.reencode import re_encode
from maskshards.shards.decode.exif import has_exif_segment, orientation

WAY_OUT = "re-encode it to 8-bit RGB, or let the build do so with --convert"


def encode_images(data: bytes, policy: ImagePolicy) -> list[Encoded]:
    """The bytes to store for one source image, decoded once as a proof: one image, or its tiles in order.

    RejectedInput names what was found and the way out.
    """
    if not data:
        raise RejectedInput("the image file is empty (0 bytes)")
    with size_limit(policy.most_pixels):
        try:
            kept = _keep(data, policy.prove)
        except jpeg.DamagedImage:
            raise
        except RejectedInput as refused:
            if not policy.convert:
                raise
            return re_encode(data, policy, str(refused).split(";")[0])
        too_large = policy.max_short_side and min(kept.height, kept.width) > policy.max_short_side
        if too_large or (policy.tile and max(kept.height, kept.width) > policy.tile):
            return re_encode(data, policy, "")
        with size_limit(0):  # what is kept has to fit a record
            check_size(kept.height, kept.width)
        return [kept]


def _keep(data: bytes, prove: bool) -> Encoded:
    if data[:3] == jpeg.START:
        return _keep_jpeg(data, prove)
    if data[:8] == png.SIGNATURE:
        return _keep_png(data, prove)
    way_out = WAY_OUT if may_be_an_image(data) else "get the image itself"
    raise RejectedInput(f"{format_name(data)} instead of JPEG or PNG; {way_out}")


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
        jpeg.prove_jpeg(data, colour)
    return Encoded(data, "jpg", height, width, height, width)


def _keep_png(data: bytes, prove: bool) -> Encoded:
    header = png.read_header(data)
    check_size(header.height, header.width)
    if header.bit_depth > 8:
        raise RejectedInput(f"{header}; only 8 bits a channel are kept; --convert, and {SAY_SCALE}")
    if header.transparent or header.colour in (png.GREY_ALPHA, png.RGB_ALPHA):
        raise RejectedInput(f"{header} with transparency; {WAY_OUT}")
    if header.bit_depth != 8:
        raise RejectedInput(f"{header}; only 8 bits a channel are kept; {WAY_OUT}")
    if header.animated:
        raise RejectedInput(f"animated PNG; {WAY_OUT} (its first frame)")
    _check_upright(data)
    if prove:
        png.check_whole(data)
        with opened(data, ("PNG",)) as image:
            image.load()
    return Encoded(data, "png", header.height, header.width, header.height, header.width)


def _check_upright(data: bytes) -> None:
    """The parse is only paid for by files that carry EXIF."""
    if not (has_exif_segment(data) if data[:2] == b"\xff\xd8" else b"eXIf" in data):
        return
    with opened(data, ("JPEG", "PNG")) as image:
        turn = orientation(image)
    if turn != 1:
        raise RejectedInput(
            f"EXIF orientation {turn}: viewers turn this image, decoders do not; {WAY_OUT}"
            " (upright; so its label map must lie)"
        )
