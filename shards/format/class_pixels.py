"""How many pixels each class has in a split, from its index alone, and what is odd about them, in lines.

A class without a pixel is never learnt, one seen in a single split is not measured or not trained, and much
void often means that the label rule is not the one that the data set needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from maskshards.shards.errors import ManifestError, counted
from maskshards.shards.format.manifest import Split

SHOWN_NAMES = 8


@dataclass(frozen=True, slots=True, eq=False)
class ClassPixels:
    """The pixels of one split with C classes."""

    split: str
    classes: tuple[str, ...]  # (C,)
    pixels: NDArray[np.int64]  # (C,)
    total: int  # pixels of all images

    @property
    def void_share(self) -> float:
        """Of all pixels, 0..1."""
        return 1 - int(self.pixels.sum()) / self.total if self.total else 0.0


def count_class_pixels(split: Split) -> ClassPixels:
    """Sums over the index of a split, shard by shard; ManifestError where the index is wrong."""
    manifest = split.manifest
    pixels = np.zeros(len(manifest.classes), np.int64)
    total = 0
    for number in range(len(manifest.shards)):
        rows = split.index(number)
        total += int((rows.height.astype(np.int64) * rows.width).sum())
        if len(rows.flat_class_ids) and rows.flat_class_ids.max() >= len(pixels):
            raise ManifestError(
                f"{split.base}: the index names class {rows.flat_class_ids.max()}, the manifest has"
                f" {len(pixels)} classes"
            )
        np.add.at(pixels, rows.flat_class_ids, rows.flat_areas.astype(np.int64))
    return ClassPixels(manifest.split, manifest.classes, pixels, total)


def class_notes(splits: Sequence[ClassPixels]) -> list[str]:
    """Lines on classes without a pixel, classes seen in one split only, and the share of void."""
    if not splits:
        return []
    notes = []
    classes = splits[0].classes
    alike = [split for split in splits if split.classes == classes]
    seen = np.stack([split.pixels > 0 for split in alike])  # (S, C)
    absent = np.flatnonzero(~seen.any(axis=0))
    if len(absent):
        some = counted(len(absent), "class has", f"of {len(classes)} classes have")
        notes.append(f"{some} no pixel: {named_classes(classes, absent)}")
    if len(alike) > 1:
        once = seen.sum(axis=0) == 1
        parts = [
            f"{split.split}: {named_classes(classes, np.flatnonzero(once & row))}"
            for split, row in zip(alike, seen, strict=True)
            if (once & row).any()
        ]
        notes += [f"seen in one split only: {'; '.join(parts)}"] * bool(parts)
    shares = ", ".join(f"{split.split} {split.void_share:.1%}" for split in splits)
    return [*notes, f"void pixels: {shares}"]


def named_classes(classes: tuple[str, ...], places: Sequence[int] | NDArray[np.int64]) -> str:
    """The first few of the classes at `places`, by name and id, and how many more there are."""
    shown = ", ".join(f"{classes[place]!r} ({place})" for place in places[:SHOWN_NAMES])
    return shown + (f" and {len(places) - SHOWN_NAMES} more" if len(places) > SHOWN_NAMES else "")
