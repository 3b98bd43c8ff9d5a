"""A stream of ragged batches in an order that no thread, process, rank or restart can change.

    with Loader("data/ade20k-shards/training", batch_per_rank=16) as loader:
        for batch in loader: ...

A `Loader` is a `torch.utils.data.IterableDataset` whose items are batches. By itself it reads with threads.
In `DataLoader(loader, batch_size=None, num_workers=N)` worker w of N makes batches w, w + N, ..., which
DataLoader deals back in that order, so the stream is the same, batch for batch; threads are quicker unless
something holds the interpreter lock.
"""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from torch.utils.data import IterableDataset, get_worker_info

from maskshards.shards.batch import EncodedBatch, RaggedBatch
from maskshards.shards.errors import RAISE
from maskshards.shards.format.manifest import Split
from maskshards.shards.loading.batch_reader import BatchReader
from maskshards.shards.loading.cache import CacheSettings
from maskshards.shards.loading.class_maps import ignore_index_of
from maskshards.shards.loading.ordered_map import MOST_AHEAD, MOST_THREADS, InOrder, close_at_exit
from maskshards.shards.loading.place import Place, Share
from maskshards.shards.loading.selecting import close_stores, own, reopened, say_if_alone_among_ranks
from maskshards.shards.loading.transform import Transform
from maskshards.shards.loading.transformed_reader import TransformedReader
from maskshards.shards.order.batch_plans import BatchPlan, TrainingPlans
from maskshards.shards.order.order import (
    ALONE,
    MOST_SEED,
    ORDER_VERSION,
    Order,
    World,
    checked_world,
    num_micro_steps,
    whole_number,
)
from maskshards.shards.order.selection import Selection

STATE_VERSION = 1
SECOND = (
    "another iteration of this loader has begun since, and took this one's place; for two at a time use "
    "copy.copy(loader)"
)

Stage = Callable[[Iterator[Any]], Iterator[Any]]


class Loader(IterableDataset[Any]):
    """One rank's stream of training batches, one per micro-step.

    `split`: an open Split, its URL or folder, or a Selection. `global_batch` is batch_per_rank * num_ranks
    unless given. `position` is where to start, a multiple of global_batch.

    Without more the stream is endless. With `epochs` one iteration, a pass, is that many epochs, rounded up
    to whole global batches; the next iteration goes on with the next pass, and `len()` is the batches of a
    pass. `end`, a multiple of global_batch, is a position beyond which nothing comes, and gives a length
    too. `epoch_end`: "carry" or "drop", see `Order`.

    `threads` read; at most `prefetch_batches` batches (at least one a thread) wait in memory, in pinned
    memory with `pin`. `policy`: "raise" a damaged sample as SampleError, or "replace" it by a substitute
    drawn from (seed, position), counted in `num_replaced` and in each batch. `cache`: where whole shards of
    a remote split are kept; without one its samples are fetched by ranges. `decode`: with one, images stay
    as their files hold them while threads read, and it decodes them, on a GPU for instance, in the
    consumer's thread. `transform`: a function of one sample, (image (H, W, 3) uint8, class map (H, W),
    numpy generator) -> (image, class map), run by the reading threads; the generator's numbers are a
    function of (seed, epoch, key), and `ignore_index` marks pixels in no class. `as_dict`: batches are plain
    dicts of tensors (`transform.stacked`), all images of one size. `stages`: generators from batches to
    batches, run in the consumer's thread at last; each hands over one batch for each that it takes.

    May be pickled and copied at any time; a copy continues after the last whole global batch.
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
        epochs: int | None = None,
        epoch_end: str = "carry",
        threads: int = 2,
        prefetch_batches: int = 4,
        pin: bool = False,
        policy: str = RAISE,
        cache: CacheSettings | None = None,
        decode: Callable[[EncodedBatch], RaggedBatch] | None = None,
        transform: Transform | None = None,
        as_dict: bool = False,
        stages: tuple[Stage, ...] = (),
    ) -> None:
        batch_per_rank, world = whole_number(batch_per_rank, "batch_per_rank", 1), checked_world(world)
        seed = whole_number(seed, "seed", 0, MOST_SEED)
        threads = whole_number(threads, "threads", 1, MOST_THREADS)
        prefetch_batches = whole_number(prefetch_batches, "prefetch_batches", 1, MOST_AHEAD)
        if global_batch is None:
            global_batch = batch_per_rank * world.num_ranks
        self.selection = own(split, cache)
        self.global_batch = whole_number(global_batch, "global_batch", 1)
        self.micro_steps = num_micro_steps(self.global_batch, batch_per_rank, world.num_ranks)
        self.batch_per_rank, self.world, self.seed, self.stages = batch_per_rank, world, seed, tuple(stages)
        self.threads, self.prefetch_batches, self.pin, self.decode = threads, prefetch_batches, pin, decode
        order = Order(self.selection.shard_samples, seed, self.global_batch, epoch_end)
        self.num_samples, self.epoch_end = order.num_samples, epoch_end
        self.wait_ms = 0.0  # how long the consumer has waited for batches, all together
        lanes = self.global_batch // world.num_ranks
        self._reader = BatchReader(self.selection, seed=seed, policy=policy, pin=pin, lanes=lanes)
        if as_dict or transform is not None:
            self._reader = TransformedReader(
                self.selection, seed=seed, policy=policy, pin=pin, lanes=lanes, transform=transform
            )
        self.as_dict, self.ignore_index = as_dict, ignore_index_of(len(self.selection.classes))
        if decode is not None and (transform is not None or as_dict):
            raise ValueError("decode leaves images to the consumer; transform and as_dict need them decoded")
        self.end, self.epochs = end, epochs
        self._place = Place(
            self._batches_before(position, "position"),
            self.micro_steps,
            per_pass=None if epochs is None else order.num_steps(epochs) * self.micro_steps,
            end=None if end is None else self._batches_before(end, "end"),
        )
        self._begin()

    def _begin(self) -> None:
        """What belongs to this process alone."""
        self._process = os.getpid()
        self._turn = 0  # number of the iteration that reads now
        self._reading: InOrder[BatchPlan, Any] | None = None
        close_at_exit(self)

    @property
    def position(self) -> int:
        """The position after the last global batch that was handed out whole."""
        return self._place.next // self.micro_steps * self.global_batch

    @property
    def num_replaced(self) -> int:
        """Samples replaced so far by this process; 0 unless the policy is "replace"."""
        return self._reader.num_replaced

    def __repr__(self) -> str:
        splits = ", ".join(split.base for split in self.selection.splits)
        sizes = f"batch_per_rank={self.batch_per_rank}, global_batch={self.global_batch}"
        rank = f"rank {self.world.rank} of {self.world.num_ranks}"
        return f"Loader({splits!r}, {self.num_samples} samples, {sizes}, {rank}, position={self.position})"

    def __len__(self) -> int:
        """Batches of a whole pass, also if this one was begun in its middle; TypeError if it is endless."""
        return self._place.pass_length()

    def __bool__(self) -> bool:
        return True  # an endless loader has no length to be asked for

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Any]:
        """Batches from the current position on; a second iterator ends the first, with RuntimeError if used.

        In a worker process of a DataLoader its share of them, always from where the loader stood in the
        parent: there `set_epoch` chooses the pass.
        """
        self.close()
        say_if_alone_among_ranks(self.world)
        self._turn += 1
        return self._batches(self._place.begin(), self._turn)

    def _batches(self, share: Share, turn: int) -> Iterator[Any]:
        batches: Iterator[Any] | None = None
        while True:
            if turn != self._turn:
                raise RuntimeError(SECOND)
            batches = self._pipeline(share) if batches is None else batches
            began = time.perf_counter()
            try:
                batch = next(batches)
            except BaseException as error:
                if turn == self._turn:
                    self.close()
                if isinstance(error, StopIteration):
                    return
                raise
            self.wait_ms += (time.perf_counter() - began) * 1e3
            self._place.handed_out()
            # Within no `try`: nothing runs where a `break` leaves this, perhaps while it is being collected.
            yield batch

    def _pipeline(self, share: Share) -> Iterator[Any]:
        read: Callable[[BatchPlan], Any] = self._reader.read
        if self.decode:
            read = self._reader.read_encoded
        elif self.as_dict and isinstance(self._reader, TransformedReader):
            read = self._reader.read_tensors
        ahead = max(self.prefetch_batches, self.threads)
        interrupt = partial(close_stores, self.selection)
        self._reading = InOrder(self.plans(share), read, self.threads, ahead, interrupt)
        batches: Iterator[Any] = iter(self._reading)
        if self.decode:
            batches = map(self.decode, batches)
        for stage in self.stages:
            batches = stage(batches)
        return iter(batches)

    def plans(self, share: Share) -> Iterator[BatchPlan]:
        """Which samples the batches of a share are made of, nothing read yet; caches hear of them."""
        return TrainingPlans(
            self.selection,
            self.seed,
            world=self.world,
            batch_per_rank=self.batch_per_rank,
            global_batch=self.global_batch,
            epoch_end=self.epoch_end,
        )(share.numbers())

    def ready(self) -> bool:
        """Whether the next batch has been read, so that asking for it waits for no reading."""
        return self._reading is not None and self._reading.ready()

    def close(self) -> None:
        """Stop reading ahead and end its threads, from any thread. The loader can be iterated again."""
        if self._process != os.getpid():  # forked: the threads, locks and files are the parent's
            self._begin()
            if get_worker_info() is None:  # a DataLoader's worker follows the parent's place
                self._place = copy.deepcopy(self._place)
            self.selection = reopened(self.selection)
            self._reader = self._reader.for_selection(self.selection)
            return
        reading, self._reading = self._reading, None
        if reading is not None:
            reading.close()
        self._reader.let_go()

    def set_epoch(self, epoch: int) -> None:
        """Go to the beginning of pass `epoch`, from 0, unless the stream stands within it already.

        Frameworks call it before each epoch. An endless stream counts its epochs itself and stays where it
        is. Worker processes of a DataLoader see it too, also persistent ones.
        """
        if self._place.go_to_pass(whole_number(epoch, "epoch")):
            self.close()

    def state_dict(
        self, position: int | None = None, *, after: RaggedBatch | dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """JSON fields from which `load_state_dict` continues, on any world size.

        Every batch handed out by this object counts as trained. Where batches are fetched ahead of their
        training step, or by a DataLoader's workers, say what was: `position`, the number of finished steps
        times global_batch, or `after`, the last batch that was trained on.
        """
        number = self._place.next
        if position is not None:
            number = self._batches_before(position, "position")
        elif after is not None:
            number = self._number_of(after) + 1
        return {
            **self._identity(),
            "position": number // self.micro_steps * self.global_batch,
            "micro_step": number % self.micro_steps,
            "batch_per_rank": self.batch_per_rank,
            "num_ranks": self.world.num_ranks,
            **(self._place.worker_state() if position is None and after is None else {}),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state; ValueError if another data set, seed or global batch made it.

        A state inside an optimiser step of several batches continues with the next of them, or, on another
        number of ranks or batch size, at the beginning of that step.
        """
        if not isinstance(state, dict):
            raise ValueError(f"the state is {state!r}; expected what state_dict() returned")
        reasons = [
            f"{name} was {state.get(name)!r}, here it is {value!r}"
            for name, value in self._identity().items()
            if state.get(name) != value
        ]
        if reasons:
            raise ValueError(
                "the loader cannot continue this state: "
                + "; ".join(reasons)
                + ". Its order would be another one: "
                "use the same data and settings, or start anew"
            )
        number = self._batches_before(state.get("position"), "the state's position")
        ours = self.batch_per_rank, self.world.num_ranks
        if (state.get("batch_per_rank"), state.get("num_ranks")) == ours:
            number += whole_number(state.get("micro_step", 0), "the state's micro_step", 0, self.micro_steps)
        self.close()
        self._place.go_to(number, state)

    def _identity(self) -> dict[str, int | str]:
        """What makes two streams the same one."""
        return {
            "version": STATE_VERSION,
            "order_version": ORDER_VERSION,
            "fingerprint": self.selection.fingerprint,
            "seed": self.seed,
            "global_batch": self.global_batch,
            "epoch_end": self.epoch_end,
        }

    def _batches_before(self, said: object, name: str) -> int:
        """How many batches of this rank lie before a position."""
        position = whole_number(said, name)
        if position % self.global_batch:
            raise ValueError(
                f"{name} {position} is not a multiple of global_batch {self.global_batch}: a stream "
                "continues after whole optimiser steps"
            )
        return position // self.global_batch * self.micro_steps

    def _number_of(self, batch: RaggedBatch | dict[str, Any]) -> int:
        """Which of this rank's batches it is, counted from position 0."""
        positions = batch["positions"].tolist() if isinstance(batch, dict) else batch.positions
        step, slot = divmod(int(positions[0]), self.global_batch)
        micro_step = slot // self.batch_per_rank - self.world.rank * self.micro_steps
        if not 0 <= micro_step < self.micro_steps:
            raise ValueError(f"the batch at position {positions[0]} is another rank's")
        return step * self.micro_steps + micro_step

    def __getstate__(self) -> dict[str, Any]:
        kept = {**self.__dict__, "_reader": self._reader.for_selection(self.selection)}
        return {name: kept[name] for name in kept if name not in ("_turn", "_reading", "_process")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin()

    def __copy__(self) -> Loader:
        other = type(self).__new__(type(self))
        other.__setstate__({**self.__getstate__(), "_place": copy.deepcopy(self._place)})
        return other
