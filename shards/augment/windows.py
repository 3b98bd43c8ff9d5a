"""Where each crop's candidate windows lie: host arithmetic, then one copy to the device.

All that follows from sizes and drawn numbers is computed here with whole numbers on the host, where the sizes
are known without asking the device. Only the choice among the candidates depends on pixels; it stays on the
device and picks from the tensors of `Windows`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from maskshards.shards.augment.resize import nearest_sources

Ints = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class WindowPlan:
    """C candidate windows for each of B images, on the host."""

    resized: tuple[tuple[int, int], ...]  # B sizes (h, w) of the whole resized image
    inner: tuple[
        tuple[int, int], ...
    ]  # B sizes of the window: the crop's, or the resized image's where smaller
    tops: Ints  # (B, C) first row of the window in the resized image
    lefts: Ints  # (B, C) first column


@dataclass(frozen=True, slots=True)
class SourceTable:
    """The int32 source index that Pillow's nearest resize shows at each resized one, for B images' axis."""

    sources: Tensor  # images back to back: the source index of every resized one, ascending
    starts: Tensor  # (B,) where each image begins in sources
    shown: Tensor  # images back to back, size + 2 numbers each: how many resized indices show one below i
    shown_starts: Tensor  # (B,) where each image begins in shown


@dataclass(frozen=True, slots=True)
class Windows:
    """What the device must know of a batch and its windows; int32 unless said otherwise."""

    pixel_starts: Tensor  # (B,) first pixel of each image in the batch
    widths: Tensor  # (B,) of the source images
    resized_widths: Tensor  # (B,)
    run_starts: Tensor  # (B,) int64, first run of each image
    run_counts: Tensor  # (B,) int64
    inner_heights: Tensor  # (B,)
    inner_widths: Tensor  # (B,)
    flips: Tensor  # (B,) 0 or 1
    tops: Tensor  # (B, C)
    lefts: Tensor  # (B, C)
    rows: SourceTable
    columns: SourceTable


def plan_windows(
    resized: Sequence[tuple[int, int]],
    crop_px: tuple[int, int],
    down: NDArray[np.float64],
    right: NDArray[np.float64],
) -> WindowPlan:
    """Windows of `crop_px`, or of the image where smaller, at fractions `down`, `right` (B, C) in [0, 1)."""
    sizes = np.array(resized, np.int64)
    inner = np.minimum(sizes, crop_px)
    rooms = sizes - inner + 1  # how many places a window can begin at
    tops, lefts = (
        (fractions * rooms[:, axis, None]).astype(np.int32) for axis, fractions in enumerate((down, right))
    )
    return WindowPlan(tuple(resized), tuple((int(h), int(w)) for h, w in inner), tops, lefts)


def source_arrays(sizes: Sequence[int], resized: Sequence[int]) -> tuple[Ints, Ints, Ints, Ints]:
    """The four fields of a SourceTable, in their order, for B source sizes and resized sizes."""
    tables = [nearest_sources(*pair) for pair in zip(sizes, resized, strict=True)]
    # Source index i is below i + 1; counting with one slot more than there are indices gives both ends.
    shown = [
        np.cumsum(np.bincount(table + 1, minlength=size + 2))
        for table, size in zip(tables, sizes, strict=True)
    ]
    arrays = []
    for parts in (tables, shown):
        starts = np.cumsum([0, *map(len, parts[:-1])])
        arrays += [np.concatenate(parts).astype(np.int32), starts.astype(np.int32)]
    return arrays[0], arrays[1], arrays[2], arrays[3]


def upload(arrays: Sequence[NDArray[np.int32] | NDArray[np.float32]], device: torch.device) -> list[Tensor]:
    """The arrays, 32 bits wide each, as tensors on `device`: one pinned buffer, one copy, nothing waits."""
    flat = torch.from_numpy(np.concatenate([array.reshape(-1).view(np.int32) for array in arrays]))
    if device.type == "cuda":
        flat = flat.pin_memory()
    flat = flat.to(device, non_blocking=True)
    tensors = []
    for part, array in zip(flat.split([array.size for array in arrays]), arrays, strict=True):
        whole = array.dtype == np.int32
        tensors.append((part if whole else part.view(torch.float32)).view(array.shape))
    return tensors


def stretches(size: int, device: torch.device, active: NDArray[np.bool_] | None = None) -> list[slice]:
    """The samples of a batch in the portions that large elementwise work on `device` is best done in.

    On the CPU one by one, which keeps each in the cache, and only those that are `active`; elsewhere all at
    once, if any is active, because a launch costs more than the idle ones do.
    """
    needed = range(size) if active is None else np.flatnonzero(active).tolist()
    if device.type == "cpu":
        return [slice(i, i + 1) for i in needed]
    return [slice(0, size)] if needed else []
