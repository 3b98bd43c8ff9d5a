"""An endless iterator of ragged batches in an order that no thread, process, rank or restart can change.

    with Loader("data/ade20k-shards/training", batch_per_rank=16) as loader:
        for batch in loader: ...

Underneath is a webdataset pipeline of three stages: plans of batches (pure arithmetic), their reading by
threads, and whatever stages the user adds. `processes=N` runs the same pipeline in N worker processes of a
wds.WebLoader instead, with the same batches at twice the cost. The state is one integer, the position after
the last whole global batch handed out, whatever was read ahead.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import webdataset as wds

from maskshards.shards.batch import EncodedBatch, RaggedBatch
from maskshards.shards.format.manifest import Split, open_split
from maskshards.shards.loading.batch_reader import BatchReader
from maskshards.shards.loading.cache import CacheSettings, cached
from maskshards.shards.loading.ordered_map import InOrder, errors_as_values, in_order, values_as_errors
from maskshards.shards.order.batch_plans import BatchPlan, TrainingPlans, announced, evaluation_plans
from maskshards.shards.order.order import ORDER_VERSION, Order, World, num_micro_steps
from maskshards.shards.order.selection import Selection, whole

STATE_VERSION = 1
ALONE = World()

Stage = Callable[[Iterator[RaggedBatch]], Iterator[RaggedBatch]]


class Loader:
    """One rank's stream of training batches, one per micro-step.

    `split`: an open Split, its URL or folder, or a Selection. `global_batch` is batch_per_rank * num_ranks
    unless given. `position` is where to start and `end` where to stop, if anywhere; both are multiples of
    global_batch. `epoch_end`: "carry" or "drop", see `Order`. `threads` read; at most
    `prefetch_batches` batches (at least one a thread) wait in memory, in pinned memory with `pin`. `policy`:
    "raise" a damaged sample as SampleError, or "replace" it by a substitute drawn from (seed, position),
    counted in `num_replaced`. `cache`: where whole shards of a remote split are kept; without one its samples
    are fetched by ranges. `decode`: with one, images stay as their files hold them while threads read, and it
    decodes them, on a GPU for instance, in the consumer's thread. `stages`: webdataset stages, generators
    from batches to batches, run in the consumer's thread after that; they must hand over one batch for each
    that they take.
    """

    def __init__(
        self,
        split: Selection | Split | str | Path,
        *,
        batch_per_rank: int,
        global_batch: int | None = None,
        world: World = ALONE,
        seed: int = 0,
        position: int = 0,
        end: int | None = None,
        epoch_end: str = "carry",
        threads: int = 2,
        processes: int = 0,
        prefetch_batches: int = 4,
        pin: bool = False,
        policy: str = "raise",
        cache: CacheSettings | None = None,
        decode: Callable[[EncodedBatch], RaggedBatch] | None = None,
        stages: tuple[Stage, ...] = (),
    ) -> None:
        self.selection = select(split, cache)
        self._owns_stores = cache is not None or isinstance(split, (str, Path))
        self.global_batch = global_batch or batch_per_rank * world.num_ranks
        self.micro_steps = num_micro_steps(self.global_batch, batch_per_rank, world.num_ranks)
        self.batch_per_rank, self.world, self.seed, self.stages = batch_per_rank, world, seed, stages
        self.threads, self.processes, self.prefetch_batches = threads, processes, prefetch_batches
        self.pin, self.decode = pin, decode
        if min(threads, prefetch_batches) < 1 or processes < 0:
            raise ValueError(
                f"threads {threads} and prefetch_batches {prefetch_batches} must be positive, "
                f"processes {processes} not negative"
            )
        order = Order(self.selection.shard_samples, seed, self.global_batch, epoch_end)
        self.num_samples, self.epoch_end = order.num_samples, epoch_end
        self.wait_ms = 0.0  # how long the consumer has waited for batches, all together
        self._reader = BatchReader(self.selection, seed=seed, policy=policy, pin=pin and not processes)
        self._running: Iterator[RaggedBatch] | None = None
        self._in_order: InOrder[BatchPlan, Any] | None = None
        self._position = 0
        if end is not None and end % self.global_batch:
            raise ValueError(f"end {end} is not a multiple of global_batch {self.global_batch}")
        self.end = end
        self._go_to(position)

    @property
    def position(self) -> int:
        """The position after the last global batch that was handed out whole."""
        return self._position

    @property
    def num_replaced(self) -> int:
        """Samples replaced so far for this loader; 0 unless the policy is "replace"."""
        return self._reader.num_replaced

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[RaggedBatch]:
        """Batches from the current position on; a second iterator ends the first."""
        self.close()
        start, self._running = self._position, iter(self.pipeline())
        running = self._running
        try:
            began = time.perf_counter()
            for number, batch in enumerate(running, 1):
                self.wait_ms += (time.perf_counter() - began) * 1e3
                self._position = start + number // self.micro_steps * self.global_batch
                yield batch
                began = time.perf_counter()
        finally:
            if self._running is running:
                self.close()

    def pipeline(self) -> wds.DataPipeline:
        """The webdataset pipeline behind the iterator, from the current position on."""
        plans = TrainingPlans(
            self.selection,
            self.seed,
            world=self.world,
            batch_per_rank=self.batch_per_rank,
            global_batch=self.global_batch,
            position=self._position,
            end=self.end,
            epoch_end=self.epoch_end,
        )
        num_threads = 0 if self.processes else self.threads
        read = self._reader.read_encoded if self.decode else self._reader.read
        reading = InOrder(read, num_threads, max(self.prefetch_batches, num_threads))
        decoding = (wds.map(self.decode),) if self.decode else ()
        if not self.processes:
            self._in_order = reading
            return wds.DataPipeline(plans, reading, *decoding, *self.stages)
        workers = wds.WebLoader(
            wds.DataPipeline(plans, reading, self._reader.tallied, errors_as_values),
            batch_size=None,
            num_workers=self.processes,
            prefetch_factor=max(1, self.prefetch_batches // self.processes),
            multiprocessing_context="forkserver",
        )
        pinned = (wds.map(RaggedBatch.pin_memory),) if self.pin and not self.decode else ()
        return wds.DataPipeline(workers, values_as_errors, self._counted, *pinned, *decoding, *self.stages)

    def _counted(self, results: Iterator[tuple[Any, int]]) -> Iterator[Any]:
        """Batches of worker processes, their replaced samples counted here."""
        for batch, num_replaced in results:
            self._reader.num_replaced += num_replaced
            yield batch

    def close(self) -> None:
        """Stop reading ahead and end its threads or processes. The loader can be iterated again."""
        running, self._running = self._running, None
        if self._in_order is not None:
            self._in_order.close()
            self._in_order = None
        if running is not None:
            running.close()  # type: ignore[attr-defined]
            if self._owns_stores:
                for split in self.selection.splits:
                    split.store.close()

    def state_dict(self, position: int | None = None) -> dict[str, int | str]:
        """JSON fields from which `load_state_dict` continues, on any world size.

        `position`: give it where batches are fetched ahead of their training step: the number of finished
        steps times global_batch. Otherwise every batch handed out counts as trained.
        """
        return {
            "version": STATE_VERSION,
            "order_version": ORDER_VERSION,
            "fingerprint": self.selection.fingerprint,
            "seed": self.seed,
            "global_batch": self.global_batch,
            "epoch_end": self.epoch_end,
            "position": self._position if position is None else position,
        }

    def load_state_dict(self, state: dict[str, int | str]) -> None:
        """Continue from a state; ValueError if another data set, seed or global batch made it."""
        ours = self.state_dict()
        reasons = [
            f"{name} was {state.get(name)!r}, here it is {value!r}"
            for name, value in ours.items()
            if name != "position" and state.get(name) != value
        ]
        if reasons:
            raise ValueError(
                "the loader cannot continue this state: "
                + "; ".join(reasons)
                + ". Its order would be another one: "
                "use the same data and settings, or start anew"
            )
        self._go_to(int(state["position"]))

    def _go_to(self, position: int) -> None:
        if position < 0 or position % self.global_batch:
            raise ValueError(
                f"position {position} is not a multiple of global_batch {self.global_batch}: a stream "
                "continues after whole optimiser steps"
            )
        self.close()
        self._position = position


def select(split: Selection | Split | str | Path, cache: CacheSettings | None = None) -> Selection:
    """A selection as it is; a split, or the one at a URL or in a folder, as a whole. Read through a cache if
    given.
    """
    if not isinstance(split, Selection):
        split = whole(split if isinstance(split, Split) else open_split(str(split)))
    if cache is None:
        return split
    return replace(split, splits=tuple(cached(part, cache) for part in split.splits))


def evaluation_batches(
    split: Selection | Split | str | Path,
    *,
    batch_per_rank: int,
    world: World = ALONE,
    threads: int = 2,
    prefetch_batches: int = 4,
    max_samples: int | None = None,
    pin: bool = False,
    cache: CacheSettings | None = None,
) -> Iterator[RaggedBatch]:
    """Each of the first `max_samples` samples (default all) once over all ranks, in the order of the shards.

    Every rank gets the same number of batches: rows with `valid` False repeat the last sample and must not be
    counted. Positions are numbers of samples in the split, epochs are 0.
    """
    selection = select(split, cache)
    plans = evaluation_plans(selection.shard_samples, batch_per_rank, world, max_samples)
    reader = BatchReader(selection, seed=0, pin=pin)
    return in_order(announced(selection, plans), reader.read, threads, max(prefetch_batches, threads))
