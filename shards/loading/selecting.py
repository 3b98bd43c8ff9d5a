"""What a loader is given, a place, a split or a selection, as a selection."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

from maskshards.shards.format.manifest import Split, open_split
from maskshards.shards.loading.cache import CacheSettings, cached
from maskshards.shards.order.selection import Selection, whole


def select(split: Selection | Split | str | Path, cache: CacheSettings | None = None) -> Selection:
    """A selection as it is; a split, or the one at a URL or in a folder, as a whole. Read through a cache if
    given.
    """
    if not isinstance(split, Selection):
        split = whole(split if isinstance(split, Split) else open_split(str(split)))
    if cache is None:
        return split
    return replace(split, splits=tuple(cached(part, cache) for part in split.splits))


def own(split: Selection | Split | str | Path, cache: CacheSettings | None = None) -> Selection:
    """`select` for who wants to close the stores at any time, in whatever thread: shared with nobody."""
    opened_here = isinstance(split, (str, Path))
    return select(split if opened_here else reopened(select(split)), cache)


def close_stores(selection: Selection) -> None:
    """End every read under way, and let go of files and connections."""
    for split in selection.splits:
        split.store.close()


def reopened(selection: Selection) -> Selection:
    """The same selection with stores that share no lock, file or connection with the given one."""
    splits = tuple(Split(split.manifest, copy.copy(split.store)) for split in selection.splits)
    return replace(selection, splits=splits)
