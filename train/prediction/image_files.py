"""Image files as people have them, read by Pillow and by nothing that Pillow would start.

Only a closed list of formats is tried: without one, Pillow hands a PostScript file that is called photo.jpg
to Ghostscript. A file must be a regular one, so no pipe makes a run wait and no device fills the memory.
"""

from __future__ import annotations

import threading
import warnings
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from maskshards.shards.decode.exif import orientation, turned
from maskshards.shards.storage.foreign_file import ForeignFileError, open_regular

FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "BMP", "TIFF", "GIF", "JPEG2000", "PPM", "AVIF", "HEIF")
SUFFIXES = (
    ".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".jp2", ".j2k", ".ppm",
    ".pgm", ".avif", ".heic", ".heif",
)  # fmt: skip
MOST_PX = 1 << 29  # pixels of one image: 1.5 GB decoded, 3.5 GB while it is
_settings_lock = threading.Lock()  # Pillow's limit and the filters of warnings are the process's


class PredictError(ValueError):
    """What was asked for cannot be done, or an image cannot be read: one sentence for people."""


def read_image(path: Path) -> np.ndarray:
    """(H, W, 3) uint8 RGB, upright. PredictError, without the file's name, for what is no sound image."""
    _register_heif()
    try:
        with open_regular(path) as file, _open_image(file) as image:
            return upright_rgb(image)
    except PredictError:
        raise
    except ForeignFileError as error:
        raise PredictError("is no regular file") from error
    except (FileNotFoundError, NotADirectoryError) as error:
        raise PredictError("does not exist") from error
    except PermissionError as error:
        raise PredictError("may not be read by this user") from error
    except MemoryError as error:
        raise PredictError("does not fit into memory; cut it into parts") from error
    except Exception as error:  # Pillow's decoders raise of every kind on damaged files
        raise PredictError(_advice(path, error)) from error


def upright_rgb(image: Image.Image) -> np.ndarray:
    """(H, W, 3) uint8 RGB of a Pillow image, turned by its EXIF orientation.

    Grey is repeated, colours of a palette are looked up, an alpha channel is dropped; 16-bit grey is divided
    by 257, so that 65535 becomes 255. PredictError for what holds no such values.
    """
    if image.mode.startswith("I;16"):
        pixels = from_16_bits(np.asarray(image).astype(np.uint16))
        image = turned(Image.fromarray(pixels), _stated_orientation(image))
    elif image.mode in ("I", "F"):
        raise PredictError(
            f"has mode {image.mode} (numbers of 32 bits), whose scale nobody can know; save it with 8 bits a "
            "channel"
        )
    else:
        image = turned(image, _stated_orientation(image))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def from_16_bits(values: np.ndarray) -> np.ndarray:
    """uint8 of uint16 values whose white is 65535. PredictError if they look like 8 or 12 bits."""
    highest = int(values.max(initial=0))
    if 0 < highest < 4096:
        raise PredictError(
            f"holds 16-bit values up to {highest} only, as 8 or 12 bits kept in 16 do; save it as uint8 with "
            "white at 255"
        )
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


def image_px(path: Path) -> int:
    """Pixels of the image in a file by its header alone; 0 for what cannot be read."""
    _register_heif()
    try:
        with open_regular(path) as file, _open_image(file) as image:
            return image.width * image.height
    except Exception:  # told when the whole image is read
        return 0


def _open_image(file: BinaryIO) -> Image.Image:
    """The image, its header read. Pillow's own limit, which gives no advice, is lifted meanwhile."""
    with _settings_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about tags, which nothing here reads
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            image = Image.open(file, formats=_formats())
        finally:
            Image.MAX_IMAGE_PIXELS = before
    if image.width * image.height > MOST_PX:
        raise PredictError(
            f"is {image.width}x{image.height} px, more than the {MOST_PX >> 20} Mpx that are read at once; "
            "cut it into parts"
        )
    return image


def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _stated_orientation(image: Image.Image) -> int:
    """The orientation that the file states; Pillow's warnings about damaged tags stay inside."""
    with _settings_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return orientation(image)


def _register_heif() -> None:
    if "HEIF" in Image.OPEN:
        return
    try:
        import pillow_heif
    except ImportError:
        return
    pillow_heif.register_heif_opener()


def can_read(suffix: str) -> bool:
    """Whether files with this ending (".heic") can be read by what is installed here."""
    _register_heif()
    Image.init()
    return suffix in SUFFIXES and Image.registered_extensions().get(suffix) in Image.OPEN


def _advice(path: Path, error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        error = ValueError("its content is of none of the formats that are read, or damaged from the start")
    reason = str(error).replace(str(path), "it").splitlines() or [type(error).__name__]
    if path.suffix.lower() in (".heic", ".heif") and "HEIF" not in Image.OPEN:
        return "cannot be read: HEIC needs the package pillow-heif (pip install 'maskshards[heic]')"
    return f"cannot be read as an image ({reason[0][:150]}); get a good copy of it, or leave it out"
