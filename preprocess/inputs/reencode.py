"""Images that cannot or shall not be kept: made upright 8-bit RGB, scaled or cut on request, encoded again.

PNG stays PNG; everything else becomes a JPEG of quality 95 without chroma subsampling.
"""

from __future__ import annotations

import io

from PIL import Image

from maskshards.preprocess.errors import RejectedInput
from maskshards.preprocess.inputs import jpeg, png
from maskshards.preprocess.inputs.deep import deep_kind, read_deep
from maskshards.preprocess.inputs.formats import TIFF_STARTS, format_name, may_be_an_image, readable_formats
from maskshards.preprocess.inputs.image_policy import Encoded, ImagePolicy
from maskshards.preprocess.inputs.pillow import opened
from maskshards.preprocess.inputs.tiles import tile_corners
from maskshards.shards.decode.exif import orientation, turned
from maskshards.shards.format.rle import MAX_PIXELS

JPEG_QUALITY = 95  # of re-encoded images; subsampling 4:4:4, so that colours keep their edges
JPEG_LONGEST_PX, PNG_LONGEST_PX = 65_500, 1_000_000  # sides that libjpeg and libpng encode
RE_ENCODING = (
    f"JPEG quality {JPEG_QUALITY} 4:4:4, or PNG where the source is PNG; scaled by Lanczos, labels by nearest"
)


def re_encode(data: bytes, policy: ImagePolicy, reason: str) -> list[Encoded]:
    """The image scaled to the policy's size, or its tiles in order; one image where neither is asked for.

    RejectedInput where it cannot be read, or where the target format cannot hold it.
    """
    if data[:3] == jpeg.START:
        jpeg.prove_before_converting(data)
    elif data[:8] == png.SIGNATURE:
        png.check_whole(data)
    picture, how = _upright_rgb(data, policy)
    image_format = "png" if data[:8] == png.SIGNATURE else "jpg"
    notes = [part for part in (reason, how) if part]
    size = picture.height, picture.width
    if policy.tile and max(size) > policy.tile:
        return _tiles(picture, image_format, notes, policy)
    height, width = scaled_size(*size, policy.max_short_side)
    if (height, width) != size:
        picture = picture.resize((width, height), Image.Resampling.LANCZOS)
        notes.append(f"Lanczos to {width}x{height}")
    return [_encode(picture, image_format, notes, size)]


def _tiles(picture: Image.Image, image_format: str, notes: list[str], policy: ImagePolicy) -> list[Encoded]:
    size = picture.height, picture.width
    found = []
    for top, left in tile_corners(*size, policy.tile, policy.overlap):
        bottom, right = min(top + policy.tile, size[0]), min(left + policy.tile, size[1])
        cut = picture.crop((left, top, right, bottom))
        found.append(_encode(cut, image_format, [*notes, "cut"], size, (top, left)))
    return found


def _encode(
    picture: Image.Image,
    image_format: str,
    notes: list[str],
    source_size: tuple[int, int],
    corner: tuple[int, int] | None = None,
) -> Encoded:
    height, width = picture.height, picture.width
    longest = JPEG_LONGEST_PX if image_format == "jpg" else PNG_LONGEST_PX
    if max(height, width) > longest or height * width > MAX_PIXELS:
        raise RejectedInput(
            f"{width}x{height} pixels cannot be stored: {image_format} files take sides of up to {longest}, a"
            f" record {MAX_PIXELS} pixels; scale it down (--max-short-side) or cut it (--tile)"
        )
    out = io.BytesIO()
    if image_format == "jpg":
        picture.save(out, "JPEG", quality=JPEG_QUALITY, subsampling=0)
        name = f"JPEG quality {JPEG_QUALITY} 4:4:4"
    else:
        picture.save(out, "PNG")
        name = "PNG"
    note = f"re-encoded as {name} ({', '.join(notes)})"
    return Encoded(out.getvalue(), image_format, height, width, *source_size, note, corner)


def _upright_rgb(data: bytes, policy: ImagePolicy) -> tuple[Image.Image, str]:
    """Three 8-bit channels as viewers show them, and what that took, in words."""
    kind, turn = "a TIFF of many bands", 1
    try:
        with opened(data, readable_formats(data)) as image:
            kind = deep_kind(data, image, policy.bands)
            if not kind:
                image.load()  # Pillow turns a TIFF itself, and says so only afterwards
                return turned(_to_rgb(image), orientation(image)), _first_of_many(image)
            turn = orientation(image)
    except RejectedInput as error:
        if "cannot identify image file" not in str(error):
            raise
        if not data.startswith(TIFF_STARTS):
            # It may be whole, for all that is known here: name it, do not call it damaged.
            way_out = (
                "write it as an 8-bit RGB JPEG or PNG" if may_be_an_image(data) else "get the image itself"
            )
            raise RejectedInput(f"{format_name(data)} cannot be read; {way_out}") from error
    return read_deep(data, policy, kind, turn)


def _first_of_many(image: Image.Image) -> str:
    frames = getattr(image, "n_frames", 1)
    return f"the first of {frames} frames" if frames > 1 and image.format != "MPO" else ""


def _to_rgb(image: Image.Image) -> Image.Image:
    """Three 8-bit channels; alpha is dropped without blending."""
    image.info.pop("transparency", None)
    return image.convert("RGB")


def scaled_size(height: int, width: int, max_short_side: int) -> tuple[int, int]:
    """(height, width) with a short side of at most `max_short_side` px, the other rounded half up.

    A `max_short_side` of 0 leaves the size as it is.
    """
    short = min(height, width)
    if not max_short_side or short <= max_short_side:
        return height, width
    grown = (max(height, width) * 2 * max_short_side + short) // (2 * short)
    return (max_short_side, grown) if height <= width else (grown, max_short_side)
