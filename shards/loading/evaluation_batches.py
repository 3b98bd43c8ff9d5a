"""Every sample of a split once, on any number of ranks, in equal numbers of batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from torch.utils.data import IterableDataset, get_worker_info

from maskshards.shards.format.manifest import Split
from maskshards.shards.loading.batch_reader import BatchReader
from maskshards.shards.loading.cache import CacheSettings
from maskshards.shards.loading.class_maps import ignore_index_of
from maskshards.shards.loading.ordered_map import MOST_AHEAD, MOST_THREADS, in_order
from maskshards.shards.loading.selecting import close_stores, reopened, select
from maskshards.shards.loading.transform import Transform
from maskshards.shards.loading.transformed_reader import TransformedReader
from maskshards.shards.order.batch_plans import BatchPlan, announced, evaluation_plans
from maskshards.shards.order.order import ALONE, MOST_IN_BATCH, World, checked_world, whole_number
from maskshards.shards.order.selection import Selection


class EvaluationBatches(IterableDataset[Any]):
    """See `evaluation_batches`. Each iteration begins anew and has `len()` batches.

    In `DataLoader(batches, batch_size=None, num_workers=N)` each worker reads its share. May be pickled and
    copied.
    """

    def __init__(
        self,
        selection: Selection,
        plans: list[BatchPlan],
        threads: int,
        prefetch_batches: int,
        pin: bool,
        transform: Transform | None,
        as_dict: bool,
    ) -> None:
        self.selection, self.plans = selection, plans
        self.threads, self.prefetch_batches, self.pin = threads, prefetch_batches, pin
        self.transform, self.as_dict = transform, as_dict
        self.ignore_index = ignore_index_of(len(selection.classes))

    def __len__(self) -> int:
        return len(self.plans)

    def __iter__(self) -> Iterator[Any]:
        selection, info = reopened(self.selection), get_worker_info()
        plans = self.plans if info is None else self.plans[info.id :: info.num_workers]
        read: Callable[[BatchPlan], Any]
        if self.as_dict or self.transform is not None:
            reader = TransformedReader(selection, seed=0, pin=self.pin, transform=self.transform)
            read = partial(reader.read_tensors, with_valid=True) if self.as_dict else reader.read
        else:
            read = BatchReader(selection, seed=0, pin=self.pin).read
        ahead = max(self.prefetch_batches, self.threads)
        return in_order(
            announced(selection, plans), read, self.threads, ahead, partial(close_stores, selection)
        )


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
    transform: Transform | None = None,
    as_dict: bool = False,
) -> EvaluationBatches:
    """Each of the first `max_samples` samples (default all) once over all ranks, in the order of the shards.

    What is returned may be iterated again and again, as a validation loop does. Every rank gets the same
    number of batches: rows with `valid` False repeat the last sample, not to be counted. Positions are
    numbers of samples in the split, epochs 0. `transform` and `as_dict` as of `Loader`; a dict has "valid"
    besides, (B,) bool. ValueError for values without sense.
    """
    batch_per_rank = whole_number(batch_per_rank, "batch_per_rank", 1, MOST_IN_BATCH)
    threads = whole_number(threads, "threads", 1, MOST_THREADS)
    prefetch_batches = whole_number(prefetch_batches, "prefetch_batches", 1, MOST_AHEAD)
    if max_samples is not None:
        max_samples = whole_number(max_samples, "max_samples", 1)
    selection = select(split, cache)
    if isinstance(split, (str, Path)):
        close_stores(selection)  # each iteration opens its own
    plans = evaluation_plans(selection.shard_samples, batch_per_rank, checked_world(world), max_samples)
    return EvaluationBatches(selection, plans, threads, prefetch_batches, pin, transform, as_dict)
