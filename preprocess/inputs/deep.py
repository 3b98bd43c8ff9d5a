"""Images of more than 8 bits a channel, of floats, or of more bands than a screen shows.

What value is black and what is white stands in no such file (12 bits in 16, reflectance in 0..1, heights in
metres), so it is never guessed: `--scale LOW:HIGH` says it. Pillow keeps only the high byte of 16-bit
colour, which turns 12-bit pictures black, and stretches JPEG 2000 by a rule of its own; those are read by
tifffile and imagecodecs (extra `deep`).
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image

from maskshards.preprocess.errors import RejectedInput
from maskshards.preprocess.inputs import png
from maskshards.preprocess.inputs.formats import JPEG2000_STARTS, TIFF_STARTS
from maskshards.preprocess.inputs.image_policy import MOST_BANDS, ImagePolicy
from maskshards.preprocess.inputs.pillow import check_size, opened
from maskshards.shards.decode.exif import turned

ROWS = 256  # that are scaled at once, in float64
SAY_SCALE = (
    "say which values are black and white: --scale LOW:HIGH, such as 0:65535, 0:4095 for 12 bits, or 0:1"
)
BITS, PHOTOMETRIC, SAMPLES, SAMPLE_FORMAT = 258, 262, 277, 339  # TIFF tags
UNSIGNED, SIGNED, BLACK_IS_ZERO, RGB = 1, 2, 1, 2  # values of SampleFormat and of PhotometricInterpretation


def deep_kind(data: bytes, image: Image.Image, bands: tuple[int, ...]) -> str:
    """What makes an image that Pillow opened deep, in words; '' where nothing does.

    It is not deep where it has 8 bits a channel and, where `bands` are asked for, no more than three of them.
    """
    if data[:8] == png.SIGNATURE:
        header = png.read_header(data)
        return str(header) if header.bit_depth > 8 else ""
    if data.startswith(TIFF_STARTS):
        return _tiff_kind(getattr(image, "tag_v2", {}), image.mode, bool(bands))
    if data.startswith(JPEG2000_STARTS):
        bits = _jpeg2000_bits(data)
        return f"{bits}-bit JPEG 2000" if bits > 8 else ""
    return f"{image.format} of mode {image.mode}" if image.mode[0] in "IF" else ""


def _tiff_kind(tags: Any, mode: str, choose: bool) -> str:
    bits, samples = _listed(tags.get(BITS, 1)), tags.get(SAMPLES, 1)
    odd = any(kind != UNSIGNED for kind in _listed(tags.get(SAMPLE_FORMAT, UNSIGNED)))
    if max(bits) > 8 or odd or mode[0] in "IF" or (choose and samples > 3):
        return f"TIFF of {samples} band{'s' if samples > 1 else ''} of {max(bits)} bits"
    return ""


def _listed(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def _jpeg2000_bits(data: bytes) -> int:
    """Bits of the first component, from the SIZ marker (ITU-T T.800, A.5.1)."""
    at = data.find(b"\xff\x4f\xff\x51")
    return (data[at + 42] & 0x7F) + 1 if 0 <= at < len(data) - 42 else 8


def read_deep(data: bytes, policy: ImagePolicy, kind: str, turn: int) -> tuple[Image.Image, str]:
    """Three 8-bit channels of a deep image, and what was done, in words.

    The image is turned by the EXIF orientation `turn`. RejectedInput where the policy does not say what its
    values or bands mean.
    """
    pixels, turn = _pixels(data, turn)
    if pixels.dtype.kind not in "uif" or pixels.ndim not in (2, 3):
        raise RejectedInput(f"{kind}: values of type {pixels.dtype}, shape {pixels.shape}")
    pixels, chosen = _choose_bands(pixels, policy, kind)
    if pixels.dtype == np.uint8 and policy.scale is None:
        return turned(_to_image(pixels), turn), chosen
    if policy.scale is None:
        raise RejectedInput(f"{kind}; {SAY_SCALE}")
    scaled, outside = scale_values(pixels, *policy.scale)
    low, high = policy.scale
    parts = [chosen] if chosen else []
    parts += [f"values {low:g}..{high:g} as 0..255"] + ([f"{outside} values outside"] if outside else [])
    return turned(_to_image(scaled), turn), ", ".join(parts)


def scale_values(values: np.ndarray, low: float, high: float) -> tuple[np.ndarray, int]:
    """uint8 of the same shape, and how many values lay outside `low` to `high` or were no number.

    low -> 0, high -> 255, between them linear and rounded half up, outside clipped, not-a-number 0.
    """
    scaled, outside = np.empty(values.shape, np.uint8), 0
    for start in range(0, len(values), ROWS):
        rows = values[start : start + ROWS].astype(np.float64)
        outside += rows.size - int(np.count_nonzero((rows >= low) & (rows <= high)))
        rows = np.clip(np.nan_to_num(rows, nan=low, posinf=high, neginf=low), low, high)
        scaled[start : start + ROWS] = np.floor((rows - low) * (255 / (high - low)) + 0.5)
    return scaled, outside


def _choose_bands(pixels: np.ndarray, policy: ImagePolicy, kind: str) -> tuple[np.ndarray, str]:
    """(H, W) or (H, W, 3) values. Without `--bands` one, three, and these with one more are clear."""
    count = pixels.shape[2] if pixels.ndim == 3 else 1
    if policy.bands and count > 3:
        if max(policy.bands) > count:
            raise RejectedInput(f"{kind}; --bands names band {max(policy.bands)}, it has {count}")
        chosen = pixels[..., [band - 1 for band in policy.bands]]
        note = f"bands {','.join(map(str, policy.bands))} of {count}"
        return (chosen[..., 0] if len(policy.bands) == 1 else chosen), note
    if count > 4:
        raise RejectedInput(f"{kind}: name the bands for red, green and blue: --bands 3,2,1")
    dropped = f"band {count} dropped" if count in (2, 4) else ""
    if count in (1, 2):
        return (pixels if pixels.ndim == 2 else pixels[..., 0]), dropped
    return pixels[..., :3], dropped


def _to_image(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(pixels)).convert("RGB")


def _pixels(data: bytes, turn: int) -> tuple[np.ndarray, int]:
    """(H, W) or (H, W, bands) values of any type, exactly as stored, and the turn that is left to do."""
    if data[:8] == png.SIGNATURE:
        header = png.read_header(data)
        check_size(header.height, header.width)
        if header.colour == png.GREY:
            with opened(data, ("PNG",)) as image:
                return np.array(image), turn
        return _decode(_codecs().png_decode, data), turn
    if data.startswith(JPEG2000_STARTS):
        with opened(data, ("JPEG2000",)):  # judges the size
            return _decode(_codecs().jpeg2k_decode, data), turn
    if data.startswith(TIFF_STARTS):
        grey = _grey_tiff(data)
        return (_tiff_bands(data), turn) if grey is None else (grey, 1)
    raise RejectedInput("more than 8 bits a channel are read from PNG, TIFF and JPEG 2000 alone")


def _decode(decode: Any, data: bytes) -> np.ndarray:
    try:
        pixels: np.ndarray = decode(data)
    except (RejectedInput, MemoryError):
        raise
    except Exception as error:  # each codec has a type of its own
        raise RejectedInput(f"it does not decode ({error}); get a good copy of the file") from error
    return pixels


def _grey_tiff(data: bytes) -> np.ndarray | None:
    """Values of a TIFF of one band, which Pillow turns upright; None where it has more."""
    try:
        with opened(data, ("TIFF",)) as image:
            tags: Any = getattr(image, "tag_v2", {})
            if len(image.getbands()) > 1 or tags.get(SAMPLES, 1) > 1:
                return None
            if tags.get(PHOTOMETRIC, BLACK_IS_ZERO) != BLACK_IS_ZERO:
                raise RejectedInput("a TIFF whose values count down from white, or stand for colours")
            pixels = np.array(image)
            signed = SIGNED in _listed(tags.get(SAMPLE_FORMAT, UNSIGNED))
            return pixels.view(np.int8) if signed and pixels.dtype == np.uint8 else pixels
    except RejectedInput as error:
        if "cannot identify" in str(error):
            return None
        raise


def _codecs() -> Any:
    try:
        import imagecodecs
        import tifffile  # noqa: F401
    except ImportError as error:
        raise RejectedInput(
            "colour of more than 8 bits, and many bands, need the extra: pip install 'maskshards[deep]'"
        ) from error
    return imagecodecs


def _tiff_bands(data: bytes) -> np.ndarray:
    """(H, W, bands) of the first page; planes that lie one after the other become the last axis."""
    _codecs()
    import tifffile

    def decode(data: bytes) -> np.ndarray:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            page = file.pages.first
            check_size(page.imagelength, page.imagewidth)
            meaning = int(page.photometric)
            if (
                page.samplesperpixel > MOST_BANDS
                or page.imagedepth != 1
                or meaning not in (BLACK_IS_ZERO, RGB)
            ):
                raise RejectedInput(f"a TIFF of {page.samplesperpixel} bands, photometric {meaning}")
            pixels = np.asarray(page.asarray())
            return np.moveaxis(pixels, 0, -1) if page.axes == "SYX" else pixels

    return _decode(decode, data)
