"""Files that hold label values, one a pixel: PNG, TIFF of one band, BMP, GIF, NPY.

This is the one place that decodes them.

Values come out as they are stored: a palette's indices, never its colours, grey of 1 to 16 bits, and of three
equal channels the one that they repeat. What holds no whole numbers is refused, and so is what would come out
of a damaged file.
"""

from __future__ import annotations

import io
import struct
import warnings

import numpy as np

from maskshards.preprocess.errors import RejectedInput
from maskshards.preprocess.inputs import png
from maskshards.preprocess.inputs.formats import TIFF_STARTS, format_name
from maskshards.preprocess.inputs.jpeg import prove_before_converting
from maskshards.preprocess.inputs.labels import LARGEST_VALUE, THRESHOLD_MAPPING
from maskshards.preprocess.inputs.pillow import check_size, opened
from maskshards.shards.decode.exif import ORIENTATION, orientation

NPY_START, NPY_HEADER_BYTES = b"\x93NUMPY", 10_000
GIF_START, JPEG_START = b"GIF8", b"\xff\xd8"
BMP_START, BMP_HEADER_BYTES = b"BM", 54
BMP_MODES = {1: ("1", "P"), 8: ("L", "P"), 24: ("RGB",)}  # by bits a pixel: those that hold values
GREY_STEPS = {1: 1, 2: 85, 4: 17}  # what Pillow makes of a step of 1 in grey of so many bits
SEVERAL_CHANNELS = (png.RGB, png.RGB_ALPHA, png.GREY_ALPHA)
OPAQUE = 255
COLOUR_NOISE = 32  # between the channels of a grey JPEG
ONE_CHANNEL = (
    "expected one channel, or equal ones: grey, or a palette whose indices are the labels; for a colour a"
    " class say --colours FILE"
)
BITS, PHOTOMETRIC, WHITE_IS_ZERO = 258, 262, 0  # TIFF tags; 0 of the second: values count down from white


def decode_label_file(data: bytes, lossy: bool = False) -> np.ndarray:
    """(H, W) uint8 or uint16 values of a label file; RejectedInput for what is none.

    PNG with grey, or a palette whose indices are the values; TIFF of one band of whole numbers; BMP; GIF;
    NPY; grey JPEG if `lossy`.
    """
    try:
        if data.startswith(NPY_START):
            return _decode_npy(data)
        if data.startswith(TIFF_STARTS):
            return _decode_tiff(data)
        if data.startswith(GIF_START):
            return _decode_gif(data)
        if data.startswith(BMP_START) and len(data) > BMP_HEADER_BYTES:
            return _decode_bmp(data)
        if data[:8] != png.SIGNATURE:
            if data.startswith(JPEG_START):
                return _decode_jpeg(data, lossy)
            found = format_name(data)
            raise RejectedInput(f"{found}; expected PNG, TIFF, BMP, GIF or NPY: get the original label maps")
        return _decode_png(data)
    except RejectedInput as error:
        reason = str(error)
        raise RejectedInput(reason if reason.startswith("label map") else f"label map: {reason}") from error


def npy_bytes(values: np.ndarray) -> bytes:
    """Label values as the bytes of an NPY file, for sources that compute them."""
    out = io.BytesIO()
    np.save(out, values, allow_pickle=False)
    return out.getvalue()


def _decode_png(data: bytes) -> np.ndarray:
    header = png.read_header(data)
    check_size(header.height, header.width)
    if header.animated:
        raise RejectedInput("label map is an animated PNG; save its one true frame")
    png.check_whole(data)
    if header.bit_depth == 16 and header.colour != png.GREY:
        raise RejectedInput(f"label map is a {header}; {ONE_CHANNEL}")
    with opened(data, ("PNG",)) as image:
        _check_upright(orientation(image) if b"eXIf" in data else 1)
        values = np.asarray(image)
    if header.colour in SEVERAL_CHANNELS:
        return _of_equal_channels(values, str(header), header.colour in (png.GREY_ALPHA, png.RGB_ALPHA))
    if header.colour == png.GREY and header.bit_depth < 8:
        return _small(values) // np.uint8(GREY_STEPS[header.bit_depth])
    return values if values.dtype == np.uint8 else values.astype(np.uint16)


def _decode_jpeg(data: bytes, lossy: bool) -> np.ndarray:
    if not lossy:
        raise RejectedInput(
            "a JPEG file, which does not keep values; expected PNG, TIFF, BMP, GIF or NPY: get the original"
            f" label maps. A mask of two values may be cut in two: {THRESHOLD_MAPPING}"
        )
    prove_before_converting(data)
    with opened(data, ("JPEG",)) as image:
        _check_upright(orientation(image))
        if image.mode != "L" and int(np.ptp(np.asarray(image.convert("RGB")), axis=-1).max()) > COLOUR_NOISE:
            raise RejectedInput("a JPEG file with colours; a mask of two values is grey")
        return np.asarray(image.convert("L"))


def _check_upright(turn: object) -> None:
    """RejectedInput where a tag of the file turns its image.

    Whether a label map was drawn before or after that is said nowhere.
    """
    if turn != 1:
        raise RejectedInput(
            f"label map has orientation {turn}: viewers turn it, decoders do not; save it as its image lies,"
            " without the tag"
        )


def _of_equal_channels(pixels: np.ndarray, what: str, alpha: bool) -> np.ndarray:
    """(H, W) of (H, W, C) uint8 whose channels are copies of one another, as editors save grey images.

    Alpha, the last one, may hide nothing.
    """
    if alpha and int(pixels[..., -1].min()) < OPAQUE:
        raise RejectedInput(f"label map is a {what} with transparent pixels; save it without alpha")
    shown = pixels[..., :-1] if alpha else pixels
    if not (shown == shown[..., :1]).all():
        raise RejectedInput(f"label map is a {what}; {ONE_CHANNEL}")
    return np.ascontiguousarray(shown[..., 0])


def _decode_gif(data: bytes) -> np.ndarray:
    with opened(data, ("GIF",)) as image:
        if getattr(image, "n_frames", 1) > 1:
            raise RejectedInput("label map is an animated GIF; save its one true frame as PNG")
        return np.asarray(image)


def _decode_bmp(data: bytes) -> np.ndarray:
    size, bits = struct.unpack_from("<I", data, 14)[0], struct.unpack_from("<H", data, 28)[0]
    with opened(data, ("BMP",)) as image:
        if size < 40 or image.mode not in BMP_MODES.get(bits, ()):  # a short palette may be taken for grey
            raise RejectedInput(f"label map is a BMP of {bits} bits, mode {image.mode}; save it as PNG")
        values = np.asarray(image)
    return _of_equal_channels(values, "24-bit BMP", False) if bits == 24 else _small(values)


def _decode_tiff(data: bytes) -> np.ndarray:
    with warnings.catch_warnings(action="ignore"), opened(data, ("TIFF",)) as image:  # of damaged tags
        tags = image.tag_v2  # type: ignore[attr-defined]
        if getattr(image, "n_frames", 1) > 1 or tags.get(PHOTOMETRIC) == WHITE_IS_ZERO:
            raise RejectedInput("label map is a TIFF of several pages, or one that counts down from white")
        _check_upright(tags.get(ORIENTATION, 1))
        bits = max(np.atleast_1d(tags.get(BITS, 1)))
        if image.mode in ("RGB", "RGBA", "LA") and bits == 8:
            return _of_equal_channels(np.asarray(image), f"TIFF of mode {image.mode}", image.mode[-1] == "A")
        # Pillow widens grey of 2 and 4 bits and keeps the high byte of deep colours.
        if not (image.mode in ("1", "P") or (image.mode[0] in "LI" and bits in (8, 16, 32))):
            kind = "floating-point" if image.mode == "F" else f"{bits}-bit {image.mode}"
            raise RejectedInput(f"label map is a TIFF of {kind} pixels; {ONE_CHANNEL}")
        return _small(np.asarray(image))


def _decode_npy(data: bytes) -> np.ndarray:
    """Parsed by numpy's own reader of headers, without pickles, and with sizes checked before use."""
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        read = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, fortran, dtype = read(file, max_header_size=NPY_HEADER_BYTES)
        if len(shape) == 3 and 1 in (shape[0], shape[2]):  # one band, first or last
            shape = shape[:2] if shape[2] == 1 else shape[1:]
        if len(shape) != 2 or dtype.kind not in "iub":
            raise RejectedInput(f"label map is an NPY of {dtype}, shape {shape}; expected (H, W) integers")
        check_size(*shape)
        flat = np.frombuffer(data, dtype, shape[0] * shape[1], file.tell())
    except (ValueError, KeyError) as error:
        if isinstance(error, RejectedInput):
            raise
        raise RejectedInput(f"not a whole NPY file ({error})") from error
    return _small(flat.reshape(shape, order="F" if fortran else "C"))


def _small(values: np.ndarray) -> np.ndarray:
    """As uint8 or uint16; RejectedInput for values that no rule can name."""
    if values.dtype == np.uint8:
        return values
    if values.dtype == np.bool_:
        return np.asarray(values.view(np.uint8) != 0, np.uint8)  # Pillow's true is 255
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > LARGEST_VALUE:
        raise RejectedInput(f"label values from {low} to {high}; 0 to {LARGEST_VALUE} are possible")
    return values.astype(np.uint16)
