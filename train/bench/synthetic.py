"""Made-up batches of the real shape: noise images with patchwork labels, for measuring without a data set."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch

from maskshards.shards.batch import FLAT, RaggedBatch

PATCHES = 6  # along each side of an image
UNLABELLED = 0.1  # share of patches in no mask
LABELS = 9  # classes of an image, about what one of ADE20K has


def synthetic_batch(
    size: int, num_classes: int, first: int = 0, height: int = 512, width: int = 683
) -> RaggedBatch:
    """`size` images at positions `first`, `first` + 1, ...; the same positions give the same batch.

    Each image has up to LABELS of `num_classes` classes.
    """
    random = np.random.default_rng([first, size])
    rows, columns = (np.linspace(0, side, PATCHES + 1).astype(int) for side in (height, width))
    ends, owners, offsets, classes = [], [], [0], []
    for image in range(size):
        ids = np.sort(random.choice(num_classes, min(LABELS, num_classes), replace=False))
        patch = random.integers(1, len(ids) + 1, (PATCHES, PATCHES))
        patch[random.random((PATCHES, PATCHES)) < UNLABELLED] = 0
        patch.flat[: len(ids)] = np.arange(1, len(ids) + 1)[: PATCHES**2]
        # (height, PATCHES): one run for each patch that a row crosses
        pixel_rows = patch.repeat(np.diff(rows), 0)
        begin = np.arange(height)[:, None] * width + image * height * width
        ends.append((begin + columns[1:]).ravel())
        owners.append(pixel_rows.ravel())
        offsets.append(offsets[-1] + ends[-1].size)
        classes.append(tuple(int(k) for k in ids))
    return RaggedBatch(
        pixels=torch.from_numpy(random.integers(0, 256, size * height * width * 3, dtype=np.uint8)),
        run_ends=torch.from_numpy(np.concatenate(ends).astype(np.int32)),
        run_owners=torch.from_numpy(np.concatenate(owners).astype(np.uint8)),
        run_offsets=tuple(offsets),
        heights=(height,) * size,
        widths=(width,) * size,
        labels=tuple(classes),
        keys=tuple(f"synthetic_{first + i}" for i in range(size)),
        positions=tuple(range(first, first + size)),
        epochs=(0,) * size,
        valid=(True,) * size,
    )


def synthetic_batches(size: int, num_classes: int, pin: bool, distinct: int = 4) -> Iterator[RaggedBatch]:
    """Batches without end; `distinct` different ones, made before the first is handed out."""
    made = [synthetic_batch(size, num_classes, first=i * size) for i in range(distinct)]
    if pin:
        made = [_pinned(batch) for batch in made]
    while True:
        yield from made


def _pinned(batch: RaggedBatch) -> RaggedBatch:
    return replace(batch, **{name: getattr(batch, name).pin_memory() for name in FLAT})
