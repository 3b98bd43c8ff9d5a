"""Which sample stands at which position: a pure function, so that workers only execute an order.

Positions count samples from 0 without end; epoch e holds positions [eN, (e + 1)N), every sample exactly
once. Nothing here knows threads, processes or ranks, but for `micro_batch_positions`, which deals positions
to ranks.

The order of epoch e with global batch V:
  base  the shards in an order drawn from (seed, e), inside each shard its samples in an order drawn from
        (seed, e, shard);
  lanes V consecutive stretches of that list, of N // V entries (the first N % V lanes have one more);
  p     with q = p - eN, the sample at position p is entry q // V of lane q % V.
So one slot of the batch moves forward through one lane, shard by shard, and is at random only inside the
shard that it is in: a batch mixes V places of the data set, while a reader touches few shards, each only
once.

Cost: an epoch keeps two int64 per shard; a shard's own permutation is drawn when a lane is in it. Random
words come from numpy's Philox and SeedSequence, whose streams numpy promises to keep, sorted by a stable
argsort, never from `Generator.permutation`, whose algorithm may change.
"""

from __future__ import annotations

import operator
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

ORDER_VERSION = 1
SHARD_ORDER, SAMPLE_ORDER = 1, 2  # what a draw is for, the first word of its key
EPOCH_ENDS = ("carry", "drop")
MOST_POSITION, MOST_SEED = (1 << 62) - 1, (1 << 64) - 1
MOST_IN_BATCH = 1 << 20  # samples of a step: more is a slip, whose positions would fill the memory
KEPT_PERMUTATIONS = 4096  # of 256 samples: 8 MB; a lane needs one

Int64Array = NDArray[np.int64]


def whole_number(value: object, name: str, least: int = 0, most: int = MOST_POSITION) -> int:
    """`value` as an int; ValueError that names it for anything else than a whole number in this range."""
    try:
        if isinstance(value, bool):  # an int to Python, and a slip here
            raise TypeError
        number = operator.index(value)  # type: ignore[arg-type]  # numpy's integers too
    except TypeError:
        raise ValueError(f"{name} is {value!r}; expected a whole number") from None
    if not least <= number <= most:
        raise ValueError(f"{name} is {number}; expected a whole number from {least} to {most}")
    return number


@dataclass(frozen=True, slots=True)
class World:
    """Which of how many ranks this is; made once by the launcher and passed in."""

    rank: int = 0
    num_ranks: int = 1

    def __post_init__(self) -> None:
        for name in ("rank", "num_ranks"):  # plain integers, which states hold as JSON
            object.__setattr__(self, name, whole_number(getattr(self, name), name))
        if not 0 <= self.rank < self.num_ranks:
            raise ValueError(f"rank {self.rank} of {self.num_ranks} ranks: expected 0 <= rank < num_ranks")


ALONE = World()  # one process


def checked_world(world: object) -> World:
    """`world` itself; ValueError for anything else."""
    if not isinstance(world, World):
        raise ValueError(f"world is {world!r}; expected World(rank, num_ranks)")
    return world


def random_words(num_words: int, purpose: int, *keys: int) -> NDArray[np.uint64]:
    """(num_words,) uint64, a pure function of (purpose, keys); each key takes 64 bits of its own."""
    words = [purpose]
    for key in keys:
        if not 0 <= key < 1 << 64:
            raise ValueError(f"{key} cannot key a draw: expected 0 <= key < 2**64")
        words += [key & 0xFFFFFFFF, key >> 32]
    return np.random.Philox(np.random.SeedSequence(words)).random_raw(num_words)


def permutation(num_items: int, purpose: int, *keys: int) -> Int64Array:
    """(num_items,) int64, an order of 0..num_items-1 drawn from (purpose, keys)."""
    return np.argsort(random_words(num_items, purpose, *keys), kind="stable").astype(np.int64)


class EpochOrder:
    """One epoch's shards in their drawn order, and where each of them starts in the epoch's base list."""

    def __init__(self, shard_samples: Int64Array, seed: int, epoch: int) -> None:
        self.shard_order = permutation(len(shard_samples), SHARD_ORDER, seed, epoch)  # (S,) shard numbers
        self.starts = np.zeros(len(shard_samples) + 1, np.int64)  # (S + 1,) where each shard starts in base
        np.cumsum(shard_samples[self.shard_order], out=self.starts[1:])


class Order:
    """The endless order of one (shard sizes, seed, global batch), evaluated at any position at once.

    `shard_samples`: (S,) number of samples of each shard, zeros allowed. `epoch_end`: "carry" lets a global
    batch straddle two epochs, so that each holds every sample once; "drop" leaves the last N % V entries of
    base out, other ones in each epoch, so that batches and epochs end together. Keeps two epochs' shard
    orders and a bounded number of permutations; may be used by one thread at a time.
    """

    def __init__(
        self,
        shard_samples: Int64Array | list[int],
        seed: int,
        global_batch: int,
        epoch_end: str = "carry",
    ) -> None:
        self.shard_samples = np.asarray(shard_samples, np.int64)
        self.num_samples = int(self.shard_samples.sum())
        if self.shard_samples.ndim != 1 or (self.shard_samples < 0).any():
            raise ValueError("shard_samples must be a list of counts, none negative")
        if self.num_samples == 0:
            raise ValueError("there is no sample to put in order: every shard is empty (or filtered empty)")
        if global_batch < 1:
            raise ValueError(f"global_batch is {global_batch}, expected at least 1")
        if epoch_end not in EPOCH_ENDS:
            raise ValueError(f"epoch_end is {epoch_end!r}, expected one of {', '.join(EPOCH_ENDS)}")
        dropped = self.num_samples % global_batch if epoch_end == "drop" else 0
        self.epoch_samples = self.num_samples - dropped  # positions in an epoch
        if self.epoch_samples == 0:
            raise ValueError(
                f"epoch_end 'drop' leaves nothing of {self.num_samples} samples: they fill no global batch "
                f"of {global_batch}; use 'carry' or a smaller batch"
            )
        self.seed, self.global_batch = seed, global_batch
        self._epochs: OrderedDict[int, EpochOrder] = OrderedDict()
        self._permutations: OrderedDict[tuple[int, int], Int64Array] = OrderedDict()

    def epochs(self, positions: Int64Array) -> Int64Array:
        """(n,) int64: the epoch in which each position lies."""
        return np.asarray(positions, np.int64) // self.epoch_samples

    def samples(self, positions: Int64Array) -> tuple[Int64Array, Int64Array]:
        """(n,) shard numbers and (n,) places inside those shards for (n,) positions."""
        positions = np.asarray(positions, np.int64)
        if len(positions) and positions.min() < 0:
            raise ValueError(f"position {positions.min()} is negative")
        epochs = self.epochs(positions)
        shards, indices = np.empty_like(positions), np.empty_like(positions)
        for epoch in np.unique(epochs):
            chosen = np.flatnonzero(epochs == epoch)
            order = self.epoch(int(epoch))
            entries = self._entries(positions[chosen] - epoch * self.epoch_samples)
            slots = np.searchsorted(order.starts, entries, side="right") - 1
            shards[chosen] = order.shard_order[slots]
            within = entries - order.starts[slots]
            for at, shard, offset in zip(chosen, shards[chosen], within, strict=True):
                indices[at] = self._permutation(int(epoch), int(shard))[offset]
        return shards, indices

    def next_shards(self, positions: Int64Array) -> Int64Array:
        """The shards, each once, that the lanes of these positions enter next within the same epoch."""
        positions = np.asarray(positions, np.int64)
        epochs, ahead = self.epochs(positions), []
        for epoch in np.unique(epochs):
            order = self.epoch(int(epoch))
            offsets = positions[epochs == epoch] - epoch * self.epoch_samples
            lanes = offsets % self.global_batch
            slots = np.searchsorted(order.starts, self._entries(offsets), side="right")
            slots = slots[order.starts[slots] < self._lane_starts(lanes + 1)]
            filled = np.searchsorted(order.starts, order.starts[slots], side="right") - 1  # past empty ones
            ahead.append(order.shard_order[filled])
        return np.unique(np.concatenate(ahead)) if ahead else np.empty(0, np.int64)

    def epoch(self, epoch: int) -> EpochOrder:
        if epoch not in self._epochs:
            self._epochs[epoch] = EpochOrder(self.shard_samples, self.seed, epoch)
            while len(self._epochs) > 2:
                self._epochs.popitem(last=False)
        return self._epochs[epoch]

    def num_steps(self, epochs: int) -> int:
        """Global batches in so many epochs, rounded up."""
        epochs = whole_number(epochs, "epochs (None for an endless stream)", 1)
        return -(-epochs * self.epoch_samples // self.global_batch)

    def _lane_starts(self, lanes: Int64Array) -> Int64Array:
        """Where lanes start in the base list; lane V would start at the epoch's end."""
        each, extra = divmod(self.epoch_samples, self.global_batch)
        return lanes * each + np.minimum(lanes, extra)

    def _entries(self, offsets: Int64Array) -> Int64Array:
        """Places in the base list of places q in the epoch: entry q // V of lane q % V."""
        return self._lane_starts(offsets % self.global_batch) + offsets // self.global_batch

    def _permutation(self, epoch: int, shard: int) -> Int64Array:
        found = self._permutations.get((epoch, shard))
        if found is None:
            num_samples = int(self.shard_samples[shard])
            found = permutation(num_samples, SAMPLE_ORDER, self.seed, epoch, shard)
            self._permutations[epoch, shard] = found
            while len(self._permutations) > KEPT_PERMUTATIONS:
                self._permutations.popitem(last=False)
        else:
            self._permutations.move_to_end((epoch, shard))
        return found


def num_micro_steps(global_batch: int, batch_per_rank: int, num_ranks: int) -> int:
    """M = V / (R B): how many batches each rank makes for one optimiser step."""
    if min(global_batch, batch_per_rank, num_ranks) < 1:
        raise ValueError(
            f"global_batch {global_batch}, batch_per_rank {batch_per_rank} and num_ranks {num_ranks} "
            "must be positive"
        )
    whole_number(global_batch, "global_batch", 1, MOST_IN_BATCH)
    if global_batch % (batch_per_rank * num_ranks):
        raise ValueError(
            f"global_batch {global_batch} cannot be split over {num_ranks} ranks in batches "
            f"of {batch_per_rank}; " + _what_fits(global_batch, batch_per_rank, num_ranks)
        )
    return global_batch // (batch_per_rank * num_ranks)


def _what_fits(global_batch: int, batch_per_rank: int, num_ranks: int) -> str:
    per_step = batch_per_rank * num_ranks
    below = global_batch // per_step * per_step
    near = ", ".join(str(value) for value in (below, below + per_step) if value)
    if global_batch % num_ranks:
        return f"a global_batch of {near} would fit (a multiple of {per_step})"
    share = global_batch // num_ranks
    batches = ", ".join(str(value) for value in range(1, share + 1) if share % value == 0)
    return f"a batch_per_rank of {batches} would fit, or a global_batch of {near}"


def micro_batch_positions(
    step: int, micro_step: int, world: World, batch_per_rank: int, global_batch: int
) -> Int64Array:
    """(B,) positions that rank r reads in a micro-step: slots [(rM + m)B, + B) of global batch `step`.

    A rank's slots of all micro-steps lie side by side, so that it reads neighbouring lanes.
    """
    micro_steps = num_micro_steps(global_batch, batch_per_rank, world.num_ranks)
    whole_number(step, "step", 0, MOST_POSITION // global_batch - 1)
    if not 0 <= micro_step < micro_steps:
        raise ValueError(f"micro_step {micro_step} of {micro_steps}")
    first_slot = (world.rank * micro_steps + micro_step) * batch_per_rank
    return step * global_batch + first_slot + np.arange(batch_per_rank, dtype=np.int64)
