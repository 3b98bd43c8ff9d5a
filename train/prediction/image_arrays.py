"""One image in any form that people hold it in: a path, a Pillow image, a numpy array, a torch tensor.

Arrays are 8-bit RGB, (H, W, 3): what is not, but has one meaning only, is brought there (grey, alpha, 16
bits, channels first, any strides). What could mean two things is refused with the line that settles it. An
array of OpenCV's is BGR, which no array shows: turn it with `image[..., ::-1]`.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from maskshards.train.prediction.image_files import PredictError, from_16_bits, read_image, upright_rgb

EXPECTED = "expected a path, a PIL image, a uint8 array or tensor of RGB, (H, W, 3) or (3, H, W), or a list"


def as_rgb(image: Any) -> np.ndarray:
    """(H, W, 3) uint8 RGB, C-contiguous and writable; PredictError, in one sentence, for what is none."""
    if isinstance(image, str | os.PathLike):
        return _from_file(os.fspath(image))
    if isinstance(image, Image.Image):
        return _from_pil(image)
    torch = sys.modules.get("torch")  # who has a tensor has loaded it
    if torch is not None and isinstance(image, torch.Tensor):
        return _from_array(_from_torch(image))
    if isinstance(image, np.ma.MaskedArray):
        raise PredictError("a masked array is not read, as its mask would be lost; pass image.filled(0)")
    if not isinstance(image, np.ndarray) and hasattr(image, "__array__"):  # other libraries' arrays
        image = np.asarray(image)
    if not isinstance(image, np.ndarray):
        raise PredictError(f"{_called(image)}; {EXPECTED}")
    return _from_array(image)


def each_as_rgb(images: Iterable[Any]) -> Iterator[np.ndarray]:
    """Each image of a list as `as_rgb` has it; what is said of one begins with its place, images[2]."""
    for place, image in enumerate(images):
        try:
            array = as_rgb(image)
        except PredictError as error:
            raise PredictError(f"images[{place}]: {error}") from error
        yield array


def is_many(images: Any) -> bool:
    """Whether this is a list of images rather than one."""
    return isinstance(images, list | tuple)


def _from_file(name: str | bytes) -> np.ndarray:
    if isinstance(name, bytes):
        name = os.fsdecode(name)
    if re.match(r"[a-z][a-z0-9+.-]+://", name, re.IGNORECASE):
        raise PredictError(f"{name} is a URL, and nothing is fetched here; download it and pass its path")
    if not name or "\0" in name:
        raise PredictError(f"{name[:40]!r} is no path; {EXPECTED}")
    try:
        return read_image(Path(os.path.expanduser(name)))
    except PredictError as error:
        raise PredictError(f"{name} {error}") from error


def _from_pil(image: Image.Image) -> np.ndarray:
    if 0 in image.size:
        raise PredictError(f"the PIL image is {image.width}x{image.height} px: it has no pixels")
    try:
        return upright_rgb(image)
    except PredictError as error:
        raise PredictError(f"the PIL image {error}") from error
    except Exception as error:  # a lazily opened file may be closed or cut short: Pillow raises of every kind
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise PredictError(f"the PIL image of mode {image.mode} cannot be read ({reason[:150]})") from error


def _called(image: Any) -> str:
    """What a wrong thing is, and what would do."""
    if hasattr(image, "read"):
        return "an open file is not read; pass its path, or PIL.Image.open(file)"
    if isinstance(image, bytes | bytearray | memoryview):
        return "encoded bytes are not read; pass PIL.Image.open(io.BytesIO(data))"
    if isinstance(image, Iterable) and not isinstance(image, Mapping | list | tuple):
        return f"{type(image).__name__} is no image and no list; pass list(images)"
    return f"{type(image).__name__} is no image here"


def _from_torch(tensor: Any) -> np.ndarray:
    if str(tensor.dtype) not in ("torch.uint8", "torch.uint16"):
        raise PredictError(_wrong_type(str(tensor.dtype).removeprefix("torch."), tensor.is_floating_point()))
    try:
        return np.asarray(tensor.detach().cpu().numpy())
    except (TypeError, RuntimeError, NotImplementedError) as error:  # sparse, or without any values
        reason = str(error).splitlines()[0][:150]
        raise PredictError(f"a tensor on {tensor.device} cannot be read ({reason})") from error


def _from_array(array: np.ndarray) -> np.ndarray:
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    if array.dtype.kind not in "biufc":
        several = " (images of several sizes: pass list(images))" if array.dtype.kind == "O" else ""
        raise PredictError(f"an array of {array.dtype} is no image{several}; {EXPECTED}")
    if array.dtype not in (np.uint8, np.uint16):
        raise PredictError(_wrong_type(str(array.dtype), array.dtype.kind == "f"))
    shape = array.shape
    if array.ndim == 4:
        raise PredictError(f"an array of shape {shape} is a batch: pass list(batch); {EXPECTED}")
    if array.ndim == 3 and shape[2] not in (1, 3, 4) and shape[0] in (1, 3, 4):
        array = array.transpose(1, 2, 0)
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4) or 0 in array.shape:
        raise PredictError(f"an array of shape {shape} is no image; {EXPECTED}")
    if array.dtype == np.uint16:
        try:
            array = from_16_bits(array)
        except PredictError as error:
            raise PredictError(f"the array {error}") from error
    colours = array[:, :, :3] if array.shape[2] >= 3 else array.repeat(3, axis=2)
    return np.array(
        colours, np.uint8, order="C"
    )  # a copy: torch takes no array that is read-only or mirrored


def _wrong_type(dtype: str, is_float: bool) -> str:
    if is_float:
        return (
            f"an image of {dtype} could be on the scale 0..1 or 0..255; pass uint8: "
            "(image * 255).round().astype('uint8') if white is 1, image.round().astype('uint8') if it is 255"
        )
    if dtype == "bool":
        return "an image of bool is not read; pass uint8 with white at 255: image.astype('uint8') * 255"
    return (
        f"an image of {dtype} is not read; pass uint8 with white at 255: image.astype('uint8') if all values "
        "lie in 0..255"
    )
