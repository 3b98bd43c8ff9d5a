"""Every sample of a split once, on any number of ranks, in equal numbers of batches."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from maskshards.shards.batch import RaggedBatch
from maskshards.shards.format.manifest import Split
from maskshards.shards.loading.batch_reader import BatchReader
from maskshards.shards.loading.cache import CacheSettings
from maskshards.shards.loading.ordered_map import in_order
from maskshards.shards.loading.selecting import close_stores, own
from maskshards.shards.order.batch_plans import announced, evaluation_plans
from maskshards.shards.order.order import ALONE, World
from maskshards.shards.order.selection import Selection


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

    Every rank gets the same number of batches: rows with `valid` False repeat the last sample, not to be
    counted. Positions are numbers of samples in the split, epochs 0.
    """
    selection = own(split, cache)
    plans = evaluation_plans(selection.shard_samples, batch_per_rank, world, max_samples)
    read, ahead = BatchReader(selection, seed=0, pin=pin).read, max(prefetch_batches, threads)
    return in_order(announced(selection, plans), read, threads, ahead, partial(close_stores, selection))
