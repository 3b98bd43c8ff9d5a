"""Which samples a stream is made of: numbered parts, each some rows of one shard of one split.

The order counts samples in parts; here a part's place becomes a row of a shard. A whole split is one part a
shard.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shards.manifest import Split


@dataclass(frozen=True, slots=True)
class Part:
    """Some rows of one shard; the order treats it as a shard of its own."""

    split: int  # number of the split in the selection
    shard: int  # number of the shard in that split
    rows: NDArray[np.int64] | None  # which of its samples; None = all, in their order
    num_samples: int


@dataclass(frozen=True, slots=True)
class Selection:
    """What is streamed: parts of splits that share one list of classes."""

    splits: tuple[Split, ...]
    parts: tuple[Part, ...]
    fingerprint: str  # of the content and of the choice made from it

    @property
    def shard_samples(self) -> NDArray[np.int64]:
        """(P,) number of samples of each part, for the order."""
        return np.array([part.num_samples for part in self.parts], np.int64)

    def locate(self, part: int, place: int) -> tuple[int, int, int]:
        """(split, shard, row) of the sample at `place` of a part."""
        chosen = self.parts[part]
        return chosen.split, chosen.shard, place if chosen.rows is None else int(chosen.rows[place])


def whole(split: Split) -> Selection:
    """Every sample of a split."""
    parts = tuple(Part(0, shard, None, info.samples) for shard, info in enumerate(split.manifest.shards))
    return Selection((split,), parts, split.manifest.fingerprint)
