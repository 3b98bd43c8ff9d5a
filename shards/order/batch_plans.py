"""Plans of batches: which samples each is made of. Pure arithmetic; reading them is another's work."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from maskshards.shards.order.order import Int64Array, Order, World, micro_batch_positions, num_micro_steps
from maskshards.shards.order.selection import Selection


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """Which samples a batch is made of; B entries each."""

    positions: tuple[int, ...]
    epochs: tuple[int, ...]
    parts: tuple[int, ...]  # numbers of parts of the selection
    places: tuple[int, ...]  # inside those parts
    valid: tuple[bool, ...]


class TrainingPlans:
    """The plans of one rank's batches, by their numbers counted from position 0."""

    def __init__(
        self,
        selection: Selection,
        seed: int,
        *,
        world: World,
        batch_per_rank: int,
        global_batch: int,
        epoch_end: str = "carry",
    ) -> None:
        self.selection, self.seed, self.world = selection, seed, world
        self.batch_per_rank, self.global_batch, self.epoch_end = batch_per_rank, global_batch, epoch_end
        self.micro_steps = num_micro_steps(global_batch, batch_per_rank, world.num_ranks)

    def __call__(self, numbers: Iterable[int]) -> Iterator[BatchPlan]:
        """The plan of each; the caches of the selection hear which shards are needed next."""
        order = Order(self.selection.shard_samples, self.seed, self.global_batch, self.epoch_end)
        caching = any(split.store.keeps_copies for split in self.selection.splits)
        told: set[int] = set()
        for number in numbers:
            positions = micro_batch_positions(
                number // self.micro_steps,
                number % self.micro_steps,
                self.world,
                self.batch_per_rank,
                self.global_batch,
            )
            parts, places = order.samples(positions)
            if caching:
                wanted = {*parts.tolist(), *order.next_shards(positions).tolist()}
                announce(self.selection, wanted - told)
                told = wanted
            yield BatchPlan(
                positions=tuple(positions.tolist()),
                epochs=tuple(order.epochs(positions).tolist()),
                parts=tuple(parts.tolist()),
                places=tuple(places.tolist()),
                valid=(True,) * len(positions),
            )


def announce(selection: Selection, numbers: set[int]) -> None:
    """Let the caches of a selection, where it has any, fetch the shards of these parts in the background."""
    for number in sorted(numbers):
        part = selection.parts[number]
        split = selection.splits[part.split]
        if split.store.keeps_copies:
            split.store.prefetch([split.manifest.shards[part.shard].name])


def announced(selection: Selection, plans: Sequence[BatchPlan]) -> Iterator[BatchPlan]:
    """The plans; with each, the caches hear of its parts and the next one. For reading front to back."""
    told: set[int] = set()
    for plan in plans:
        wanted = {*plan.parts, min(max(plan.parts) + 1, len(selection.parts) - 1)}
        announce(selection, wanted - told)
        told |= wanted
        yield plan


def evaluation_plans(
    shard_samples: Int64Array, batch_per_rank: int, world: World, max_samples: int | None
) -> list[BatchPlan]:
    """One rank's plans: a contiguous share of the samples, padded with repetitions of the last one."""
    num_samples = int(shard_samples.sum())
    if max_samples is not None:
        num_samples = min(num_samples, max_samples)
    if num_samples < 1 or batch_per_rank < 1:
        raise ValueError(f"cannot evaluate {num_samples} samples in batches of {batch_per_rank}")
    share = -(-num_samples // world.num_ranks)
    starts = np.concatenate([[0], np.cumsum(shard_samples)])
    plans = []
    for first in range(0, share, batch_per_rank):
        within = first + np.arange(batch_per_rank)
        numbers = world.rank * share + within
        valid = (within < share) & (numbers < num_samples)
        numbers = np.where(valid, numbers, num_samples - 1)
        parts = np.searchsorted(starts, numbers, side="right") - 1
        plans.append(
            BatchPlan(
                positions=tuple(numbers.tolist()),
                epochs=(0,) * batch_per_rank,
                parts=tuple(parts.tolist()),
                places=tuple((numbers - starts[parts]).tolist()),
                valid=tuple(valid.tolist()),
            )
        )
    return plans
