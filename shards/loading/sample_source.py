"""Where samples are: rows of the index and bytes of the shards, from any thread. Needs no torch."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import NamedTuple, TypeVar

from maskshards.shards.errors import SampleError, StoreError
from maskshards.shards.format.index import SampleEntry, ShardIndex
from maskshards.shards.format.manifest import ShardInfo, Split
from maskshards.shards.format.record import Members
from maskshards.shards.format.tar import ByteReader, read_image_and_runs, read_members
from maskshards.shards.storage.base import believed

Found = TypeVar("Found")

KEPT_INDEXES = 256  # shards whose index stays in memory, at least


class Row(NamedTuple):
    """One sample and where its bytes are."""

    split: int
    shard: ShardInfo
    entry: SampleEntry


class SampleSource:
    """Samples of some splits by number of split, shard and row; may be used from several threads.

    `lanes` is how many shards are read by turns: with fewer indexes in memory, each would be read anew at
    each turn.
    """

    def __init__(self, splits: tuple[Split, ...], lanes: int = 0) -> None:
        self._splits, self._num_kept = splits, KEPT_INDEXES + lanes
        self._lock = threading.Lock()
        self._indexes: OrderedDict[tuple[int, int], ShardIndex] = OrderedDict()

    def row(self, split: int, shard: int, row: int) -> Row:
        """What the index says of a sample."""
        return Row(split, self._splits[split].manifest.shards[shard], self._index(split, shard).entry(row))

    def image_and_runs(self, row: Row) -> tuple[bytes, bytes]:
        """The bytes of image and runs, each equal to its checksum; read again where that may help."""
        return self._read(row, partial(read_image_and_runs, entry=row.entry, shard=row.shard.name))

    def members(self, row: Row) -> Members:
        """The same of image, JSON and runs, each with its name."""
        return self._read(row, partial(read_members, entry=row.entry, shard=row.shard.name))

    def _read(self, row: Row, find: Callable[[ByteReader], Found]) -> Found:
        store, shard = self._splits[row.split].store, row.shard
        read = partial(store.read, shard.name)
        try:
            return believed(partial(find, read), SampleError, store, shard.name)
        except StoreError as error:
            # A shard of another length is a fault of the data, not of the way to it.
            num_bytes = store.size(shard.name)
            if num_bytes == shard.bytes:
                raise
            what = (
                f"the shard has {num_bytes} bytes, the manifest says {shard.bytes}; fetch or build it again"
            )
            raise SampleError(what, shard=shard.name, key=row.entry.key) from error

    def _index(self, split: int, shard: int) -> ShardIndex:
        with self._lock:
            found = self._indexes.get((split, shard))
            if found is None:
                found = self._indexes[split, shard] = self._splits[split].index(shard)
                if len(self._indexes) > self._num_kept:
                    self._indexes.popitem(last=False)
            else:
                self._indexes.move_to_end((split, shard))
            return found
