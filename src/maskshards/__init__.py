"""Train a Mask2Former head on a frozen DINO backbone from tar shards of run-length masks.

The public names below are loaded when they are first used: importing this package costs milliseconds and
needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from maskshards import train as train  # a docstring and nothing else

if TYPE_CHECKING:
    from maskshards.shards.augment.crop import CropSettings, crop, draw_crops
    from maskshards.shards.augment.targets import boxes, class_map, class_masks
    from maskshards.shards.batch import CropBatch, RaggedBatch
    from maskshards.shards.loading.cache import CacheSettings
    from maskshards.shards.loading.device_prefetcher import DevicePrefetcher
    from maskshards.shards.loading.evaluation_batches import evaluation_batches
    from maskshards.shards.loading.loader import Loader
    from maskshards.shards.loading.samples import open_split
    from maskshards.shards.order.order import World
    from maskshards.shards.order.selection import Choice, mixture
    from maskshards.train.predictor import Predictor, load_model

_HOMES = {
    "CacheSettings": "shards.loading.cache",
    "Choice": "shards.order.selection",
    "CropBatch": "shards.batch",
    "CropSettings": "shards.augment.crop",
    "DevicePrefetcher": "shards.loading.device_prefetcher",
    "Loader": "shards.loading.loader",
    "Predictor": "train.predictor",
    "RaggedBatch": "shards.batch",
    "World": "shards.order.order",
    "boxes": "shards.augment.targets",
    "class_map": "shards.augment.targets",
    "class_masks": "shards.augment.targets",
    "crop": "shards.augment.crop",
    "draw_crops": "shards.augment.crop",
    "evaluation_batches": "shards.loading.evaluation_batches",
    "load_model": "train.predictor",
    "mixture": "shards.order.selection",
    "open_split": "shards.loading.samples",
}
__all__ = [
    "CacheSettings",
    "Choice",
    "CropBatch",
    "CropSettings",
    "DevicePrefetcher",
    "Loader",
    "Predictor",
    "RaggedBatch",
    "World",
    "boxes",
    "class_map",
    "class_masks",
    "crop",
    "draw_crops",
    "evaluation_batches",
    "load_model",
    "mixture",
    "open_split",
    "train",
]

__version__: str  # looked up when it is asked for: reading it takes longer than all else here


class _TrainRoom(ModuleType):
    """The package `maskshards.train`, which can be called too: `maskshards.train(config, **overrides)`."""

    def __call__(self, *arguments: Any, **overrides: Any) -> Any:
        return import_module("maskshards.train.api").train(*arguments, **overrides)


train.__class__ = _TrainRoom


def __getattr__(name: str) -> Any:
    if name == "__version__":
        globals()[name] = _version()
        return globals()[name]
    if name not in _HOMES:
        raise AttributeError(f"module 'maskshards' has no attribute {name!r}")
    value = getattr(import_module(f"maskshards.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("maskshards")
    except PackageNotFoundError:  # a checkout on the path that was never installed
        return "0+unknown"


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
