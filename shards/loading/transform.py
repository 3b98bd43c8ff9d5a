"""A user's own function of one sample, run by the reading threads.

It gets an image, a class map and a generator whose numbers are a function of (seed, epoch, key), so what it
draws from that generator is the same in any world, on any threads and after any restart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from maskshards.shards.augment.philox import key_digest

# (image (H, W, 3) uint8, class map (H, W), generator) -> (image, class map), of any size
Transform = Callable[[NDArray[np.uint8], NDArray[Any], np.random.Generator], tuple[Any, Any]]

TRANSFORM = 4  # what a stream of numbers is for, beside those of maskshards.shards.augment.crop


class Transformed(NamedTuple):
    """What the function made of one sample."""

    image: Any  # (h, w, 3) array, or (3, h, w) tensor
    class_map: NDArray[Any]  # (h, w) of some integer type


def generator_of(seed: int, epoch: int, key: str) -> np.random.Generator:
    """A sample's own generator: numpy's Philox with the key (seed, epoch), counting from its digest on."""
    counter = np.array([0, TRANSFORM, key_digest(key), 0], np.uint64)
    return np.random.Generator(np.random.Philox(key=np.array([seed, epoch], np.uint64), counter=counter))


def checked(result: Any, key: str) -> Transformed:
    """What a transform returned; TypeError or ValueError, with the key, unless two maps of one size."""
    if not isinstance(result, (tuple, list)) or len(result) != 2:
        raise TypeError(
            f"sample {key!r}: the transform returned {type(result).__name__}; expected (image, class map)"
        )
    image, class_map = result
    class_map = np.ascontiguousarray(class_map)  # a tensor, or a flipped view, too
    if class_map.ndim != 2 or class_map.dtype.kind not in "iu":
        raise ValueError(
            f"sample {key!r}: the transform's class map is {class_map.shape} {class_map.dtype}; expected "
            "(h, w) of an integer type"
        )
    if isinstance(image, Tensor):
        image = image.detach()
        found, shape, expected = tuple(image.shape[1:]), tuple(image.shape), "(3, h, w) tensor"
        fits = image.ndim == 3 and image.shape[0] == 3
    else:
        image = np.ascontiguousarray(image)
        found, shape, expected = image.shape[:2], image.shape, "(h, w, 3) array"
        fits = image.ndim == 3 and image.shape[2] == 3 and image.dtype.kind in "iuf"
    if not fits or found != class_map.shape or not class_map.size:
        raise ValueError(
            f"sample {key!r}: the transform's image is {shape} {image.dtype} and its class map "
            f"{class_map.shape}; expected an {expected} and an (h, w) map of one size"
        )
    return Transformed(image, class_map)


def as_pixels(image: Any, key: str) -> NDArray[np.uint8]:
    """(h, w, 3) uint8 of a transformed image; TypeError for other levels than bytes."""
    if image.dtype not in (np.uint8, torch.uint8):
        raise TypeError(
            f"sample {key!r}: the transform's image is {image.dtype}; a batch of whole images carries "
            "uint8. Normalise later, or take batches as dicts (as_dict=True)"
        )
    return np.ascontiguousarray(image.permute(1, 2, 0).numpy() if isinstance(image, Tensor) else image)


def stacked(
    samples: Sequence[Transformed], keys: Sequence[str], positions: Sequence[int], pin: bool = False
) -> dict[str, Any]:
    """{"images": (B, 3, h, w), "class_maps": (B, h, w) int64, "keys": B strings, "positions": (B,) int64}.

    ValueError where sizes or types differ: one tensor holds one size.
    """
    images = [
        sample.image if isinstance(sample.image, Tensor) else torch.from_numpy(sample.image).permute(2, 0, 1)
        for sample in samples
    ]
    kinds = {(tuple(image.shape), image.dtype) for image in images}
    if len(kinds) > 1:
        raise ValueError(
            f"images of one batch are {sorted(map(str, kinds))[:3]}; as_dict=True stacks them, so let "
            "`transform` bring all to one size and type"
        )
    maps = torch.stack([torch.from_numpy(sample.class_map.astype(np.int64)) for sample in samples])
    tensors = {
        "images": torch.stack(images).contiguous(),
        "class_maps": maps,
        "positions": torch.tensor(positions, dtype=torch.int64),
    }
    return {**{name: one.pin_memory() if pin else one for name, one in tensors.items()}, "keys": list(keys)}
