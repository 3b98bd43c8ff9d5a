"""Images that stand in two splits, byte for byte: whoever trains on one split measures too much on the other.

Names tell nothing of it: in folders, different images may have one name, and copies another. The index has
the size and checksum of every image, which is enough.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from maskshards.shards.format.manifest import Split

SIZE_BIT = 32  # the checksum takes the bits below; sizes stay below 2**30


def same_image_lines(splits: Sequence[Split]) -> list[str]:
    """A line for each two splits that share images. ManifestError where an index is wrong."""
    marks = {split.manifest.split: _marks(split) for split in splits}
    lines = []
    for first, second in combinations(marks, 2):
        shared = len(np.intersect1d(marks[first], marks[second]))
        if shared:
            lines.append(
                f"{first} and {second} share {shared}, byte for byte: they test nothing after training"
            )
    return lines


def _marks(split: Split) -> NDArray[np.uint64]:
    """(N,) size and checksum of each image of a split."""
    rows = [split.index(number) for number in range(len(split.manifest.shards))]
    found = [
        row.image_size.astype(np.uint64) << np.uint64(SIZE_BIT) | row.image_crc32c.astype(np.uint64)
        for row in rows
    ]
    return np.concatenate(found) if found else np.empty(0, np.uint64)
