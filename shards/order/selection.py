"""Which samples a stream is made of: numbered parts, each some rows of one shard of one split.

The order counts samples in parts; here a part's place becomes a row of a shard. A whole split is one part a
shard. A choice (classes, sizes, a fraction) leaves rows out, a weight repeats parts, several data sets put
their parts side by side: all before the order is drawn, so a filtered mixture is as elastic and as exactly
resumable as a whole split, and holds each of its samples exactly once an epoch for each time that its weight
says.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from maskshards.shards.errors import ManifestError
from maskshards.shards.format.index import ShardIndex
from maskshards.shards.format.manifest import Split

SELECTION_VERSION = 1


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
    def classes(self) -> tuple[str, ...]:
        """Names of the classes; the class id of a name is its place."""
        return self.splits[0].manifest.classes

    @property
    def shard_samples(self) -> NDArray[np.int64]:
        """(P,) number of samples of each part, for the order."""
        return np.array([part.num_samples for part in self.parts], np.int64)

    def locate(self, part: int, place: int) -> tuple[int, int, int]:
        """(split, shard, row) of the sample at `place` of a part."""
        chosen = self.parts[part]
        return chosen.split, chosen.shard, place if chosen.rows is None else int(chosen.rows[place])


@dataclass(frozen=True, slots=True)
class Choice:
    """Which samples of a split are taken, and how often in an epoch. ValueError for values without sense."""

    classes: tuple[int, ...] = ()  # class ids; a sample needs a pixel of one of them. Empty: any sample
    min_side_px: int = 0  # of the shorter side
    max_side_px: int | None = None  # of the longer side
    fraction: float = 1.0  # of what is left; chosen by key, so a smaller fraction is part of a larger one
    weight: float = 1.0  # times that each sample occurs in an epoch; 2.5 is twice or three times

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1 or not 0 < self.weight <= 1000:
            raise ValueError(
                f"fraction {self.fraction} must be in (0, 1] and weight {self.weight} in (0, 1000]; "
                "leave a data set out to weigh it 0"
            )

    @property
    def takes_all(self) -> bool:
        """Whether no row is left out, so that no index need be read."""
        return not self.classes and self.min_side_px <= 1 and self.max_side_px is None and self.fraction == 1


EVERYTHING = Choice()


def whole(split: Split) -> Selection:
    """Every sample of a split."""
    return mixture([(split, EVERYTHING)])


def mixture(chosen: Sequence[tuple[Split, Choice]]) -> Selection:
    """Parts of several splits as one stream. Reads the index of those of which not all samples are taken.

    ManifestError where their classes differ or nothing is left.
    """
    if not chosen:
        raise ValueError("a mixture needs at least one split")
    first = chosen[0][0].manifest
    parts: list[Part] = []
    for number, (split, choice) in enumerate(chosen):
        if split.manifest.classes != first.classes:
            raise ManifestError(
                f"{split.base} has {len(split.manifest.classes)} classes, {chosen[0][0].base} has "
                f"{len(first.classes)}, or their names differ; build them with the same list of classes"
            )
        parts += _parts(number, split, choice)
    if not sum(part.num_samples for part in parts):
        places = ", ".join(split.base for split, _ in chosen)
        if all(choice.takes_all for _, choice in chosen):
            raise ManifestError(f"{places}: it holds no sample")
        raise ManifestError(
            f"{places}: no sample is left by the choice {[asdict(choice) for _, choice in chosen]}"
        )
    return Selection(tuple(split for split, _ in chosen), tuple(parts), _fingerprint(chosen))


def _fingerprint(chosen: Sequence[tuple[Split, Choice]]) -> str:
    """The split's own where it is taken whole and alone; else a digest of all contents and choices."""
    if len(chosen) == 1 and chosen[0][1] == EVERYTHING:
        return chosen[0][0].manifest.fingerprint
    facts = [SELECTION_VERSION, [[split.manifest.fingerprint, asdict(choice)] for split, choice in chosen]]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _parts(number: int, split: Split, choice: Choice) -> Iterable[Part]:
    copies, rest = divmod(choice.weight, 1)
    for shard, info in enumerate(split.manifest.shards):
        if choice.takes_all and not rest:
            rows, some, num_samples = None, None, info.samples
        else:
            index = split.index(shard)
            rows = _chosen_rows(index, choice)
            some = rows[_hashed(index, rows, "weight") < rest] if rest else None
            num_samples = len(rows)
        for _ in range(int(copies)):
            yield Part(number, shard, rows, num_samples)
        if some is not None:
            yield Part(number, shard, some, len(some))


def _chosen_rows(index: ShardIndex, choice: Choice) -> NDArray[np.int64]:
    """Rows of one shard that a choice takes, ascending."""
    taken = np.minimum(index.height, index.width) >= choice.min_side_px
    if choice.max_side_px is not None:
        taken &= np.maximum(index.height, index.width) <= choice.max_side_px
    if choice.classes:
        hits = np.concatenate([[0], np.cumsum(np.isin(index.flat_class_ids, choice.classes))])
        taken &= hits[index.label_offsets[1:]] > hits[index.label_offsets[:-1]]
    rows = np.flatnonzero(taken)
    return rows if choice.fraction == 1 else rows[_hashed(index, rows, "fraction") < choice.fraction]


def _hashed(index: ShardIndex, rows: NDArray[np.int64], purpose: str) -> NDArray[np.float64]:
    """A number in [0, 1) for each row, a function of its key and the purpose alone."""
    digests = b"".join(
        hashlib.blake2b(f"{purpose} {index.keys[row]}".encode(), digest_size=8).digest() for row in rows
    )
    return np.frombuffer(digests, "<u8").astype(np.float64) / 2**64
