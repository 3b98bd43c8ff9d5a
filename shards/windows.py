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

from shards.resize import nearest_sources

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
class Windows:
    """What the device must know of a batch and its windows; int32 unless said otherwise."""

    pixel_starts: Tensor  # (B,) first pixel of each image in the batch
    widths: Tensor  # (B,) of the source images
    run_starts: Tensor  # (B,) int64, first run of each image
    run_counts: Tensor  # (B,) int64
    inner_heights: Tensor  # (B,)
    inner_widths: Tensor  # (B,)
    flips: Tensor  # (B,) 0 or 1
    tops: Tensor  # (B, C)
    lefts: Tensor  # (B, C)
    row_starts: Tensor  # (B,) where each image begins in row_sources
    column_starts: Tensor  # (B,)
    row_sources: (
        Tensor  # for every resized row of every image b, ascending: b * stride + the source row it shows
    )
    column_sources: Tensor  # likewise for columns
    stride: int  # above every height and width, so that no image's sources reach into the next one's


def plan_windows(
    resized: Sequence[tuple[int, int]],
    crop_px: tuple[int, int],
    down: NDArray[np.float64],
    right: NDArray[np.float64],
) -> WindowPlan:
    """Windows of `crop_px` (or less, where the image is smaller) at fractions `down`, `right` (B, C) in [0,
    1).
    """
    sizes = np.array(resized, np.int64)
    inner = np.minimum(sizes, crop_px)
    rooms = sizes - inner + 1  # how many places a window can begin at
    tops, lefts = (
        (fractions * rooms[:, axis, None]).astype(np.int32) for axis, fractions in enumerate((down, right))
    )
    return WindowPlan(tuple(resized), tuple((int(h), int(w)) for h, w in inner), tops, lefts)


def source_tables(sizes: Sequence[int], resized: Sequence[int], stride: int) -> tuple[Ints, Ints]:
    """(starts (B,), sources): Pillow's nearest source of every resized index; image b's plus b * stride."""
    tables = [nearest_sources(*pair) + b * stride for b, pair in enumerate(zip(sizes, resized, strict=True))]
    starts = np.cumsum([0, *(len(table) for table in tables)])[:-1]
    return starts.astype(np.int32), np.concatenate(tables).astype(np.int32)


def upload(arrays: Sequence[NDArray[np.int32] | NDArray[np.float32]], device: torch.device) -> list[Tensor]:
    """The arrays, 32 bits wide each, as tensors on `device`: one pinned buffer and one copy that nothing
    waits for.
    """
    flat = torch.from_numpy(np.concatenate([array.reshape(-1).view(np.int32) for array in arrays]))
    if device.type == "cuda":
        flat = flat.pin_memory().to(device, non_blocking=True)
    tensors = []
    for part, array in zip(flat.split([array.size for array in arrays]), arrays, strict=True):
        whole = array.dtype == np.int32
        tensors.append((part if whole else part.view(torch.float32)).view(array.shape))
    return tensors
