"""What a loader is given, a place, a split or a selection, as a selection."""

from __future__ import annotations

import copy
import logging
from dataclasses import replace
from pathlib import Path

import torch

from maskshards.shards.format.manifest import Split, open_split
from maskshards.shards.loading.cache import CacheSettings, cached
from maskshards.shards.order.order import World
from maskshards.shards.order.selection import Selection, whole

log = logging.getLogger(__name__)


def select(split: Selection | Split | str | Path, cache: CacheSettings | None = None) -> Selection:
    """A selection as it is; a split, or the one at a URL or in a folder, as a whole.

    Read through a cache if given. ValueError where it is something else.
    """
    if not isinstance(split, (Selection, Split, str, Path)):
        raise ValueError(f"the split is {split!r}; expected its folder or URL, a Split or a Selection")
    if not isinstance(cache, (CacheSettings, type(None))):
        raise ValueError(f"cache is {cache!r}; expected CacheSettings(folder)")
    if not isinstance(split, Selection):
        split = whole(split if isinstance(split, Split) else open_split(split))
    if cache is None:
        return split
    return replace(split, splits=tuple(cached(part, cache) for part in split.splits))


def own(split: Selection | Split | str | Path, cache: CacheSettings | None = None) -> Selection:
    """`select` for who wants to close the stores at any time, in whatever thread: shared with nobody."""
    opened_here = isinstance(split, (str, Path))
    return select(split if opened_here else reopened(select(split)), cache)


def say_if_alone_among_ranks(world: World) -> None:
    """A warning where a rank of several is about to read what all others read: `world` was left out."""
    if world.num_ranks > 1 or not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return
    rank, num_ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
    if rank:  # one that reads for all, or scores alone, is the first
        log.warning(
            "rank %d of %d reads the whole stream, like every other one that reads; "
            "for a share of its own give world=World(%d, %d)",
            rank,
            num_ranks,
            rank,
            num_ranks,
        )


def close_stores(selection: Selection) -> None:
    """End every read under way, and let go of files and connections."""
    for split in selection.splits:
        split.store.close()


def reopened(selection: Selection) -> Selection:
    """The same selection with stores that share no lock, file or connection with the given one."""
    splits = tuple(Split(split.manifest, copy.copy(split.store)) for split in selection.splits)
    return replace(selection, splits=splits)
