"""`samples.parquet`: the index as a file, one row group a shard, so that a reader fetches what it needs.

Anything that reads Parquet can read it. Parquet's own checks do not cover the footer, and a footer bit can
move an offset unseen, hence the digest of values that every row group is held against. Loading pyarrow takes
a while, so it is imported where it is used: workers that only write shards never do.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from maskshards.shards.errors import ManifestError, ShardError, StoreError
from maskshards.shards.format.index import (
    INDEX_NAME,
    NUMBER_TYPES,
    Numbers,
    SampleEntry,
    ShardIndex,
    ShardInfo,
    check_rows,
)
from maskshards.shards.storage.base import Store, StoreFile

if TYPE_CHECKING:
    import pyarrow as pa

MAX_ROW_BYTES = 1 << 20  # of one sample in the index: 65,535 classes with their areas fit


class IndexFile(StoreFile):
    """The index below a store. Over a network, a row group comes by one question instead of one a column."""

    def __init__(self, store: Store) -> None:
        super().__init__(store, INDEX_NAME)
        self._remote = store.is_remote and self._data is None
        self._held_from, self._held = 0, b""

    def hold(self, offset: int, size: int) -> None:
        """Fetch a stretch that will be read piece by piece."""
        if self._remote:
            self._held_from, self._held = offset, self._store.read(self._name, offset, size)

    def readinto(self, buffer: object) -> int:
        """See io.RawIOBase."""
        view = memoryview(buffer).cast("B")  # type: ignore[arg-type]
        start = self._place - self._held_from
        if not 0 <= start <= start + len(view) <= len(self._held):
            return super().readinto(buffer)
        view[:] = self._held[start : start + len(view)]
        self._place += len(view)
        return len(view)


def write_index(
    path: str | Path, shards: Iterable[ShardInfo], entries_per_shard: Iterable[Sequence[SampleEntry]]
) -> tuple[ShardInfo, ...]:
    """Write the index file, one shard in memory at a time; the shards come back with their `index_sha256`.

    Bytes depend on the rows and on the version of pyarrow. ManifestError where rows contradict a shard.
    """
    import pyarrow.parquet as pq

    done = []
    options = {"compression": "zstd", "write_statistics": False, "store_schema": False}
    with pq.ParquetWriter(
        path, _schema(), use_dictionary=["image_format"], write_page_checksum=True, **options
    ) as out:
        for number, (shard, entries) in enumerate(zip(shards, entries_per_shard, strict=True)):
            rows = ShardIndex.of_entries(entries)
            check_rows(rows, shard)
            out.write_table(_to_table(rows, number), row_group_size=max(1, len(rows)))
            done.append(replace(shard, index_sha256=rows.sha256()))
    return tuple(done)


class IndexReader:
    """Row groups of an open index file, each checked against its digest. Safe to use from several threads."""

    def __init__(self, file: IndexFile | BinaryIO | str, shards: Sequence[ShardInfo]) -> None:
        self._source, self._shards = file, shards
        self._lock = threading.Lock()
        self._file = self._guarded(lambda: _open_parquet(file), INDEX_NAME)
        found, expected = self._file.metadata.num_row_groups, len(shards)
        if found != expected or self._file.schema_arrow != _schema():
            raise ManifestError(
                f"{INDEX_NAME} has {found} row groups of {self._file.schema_arrow.names}; expected"
                f" {expected} of {_schema().names}, as the manifest lists shards"
            )

    def read(self, number: int) -> ShardIndex:
        """The rows of one shard."""
        shard = self._shards[number]
        where = f"{INDEX_NAME}, {shard.name}"
        with self._lock:
            rows: ShardIndex = self._guarded(lambda: self._row_group(number, shard), where)
        found = rows.sha256()
        if found != shard.index_sha256:
            raise ManifestError(
                f"{where}: its rows have sha256 {found}, the manifest says {shard.index_sha256};"
                " fetch or build the data set again"
            )
        check_rows(rows, shard)
        return rows

    def _row_group(self, number: int, shard: ShardInfo) -> ShardIndex:
        group = self._file.metadata.row_group(number)
        if group.num_rows != shard.samples or not 0 <= group.total_byte_size <= MAX_ROW_BYTES * (
            shard.samples + 1
        ):
            raise ManifestError(
                f"{INDEX_NAME}, {shard.name}: a row group of {group.num_rows} rows and "
                f"{group.total_byte_size} bytes, the manifest says {shard.samples} samples"
            )
        if isinstance(self._source, IndexFile):
            self._source.hold(*_span(group, shard))
        return _from_table(self._file.read_row_group(number, use_threads=False), number)

    @staticmethod
    def _guarded(read: Any, where: str) -> Any:
        """Parquet's many ways to fail, as one; errors of our own and of the store pass through."""
        import pyarrow as pa

        try:
            return read()
        except (ShardError, StoreError):
            raise
        except (
            pa.ArrowException,
            OSError,
            ValueError,
            KeyError,
            TypeError,
            IndexError,
            MemoryError,
        ) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ManifestError(
                f"{where} cannot be read: {reason}; fetch or build the data set again"
            ) from error


def _span(group: Any, shard: ShardInfo) -> tuple[int, int]:
    """(offset, bytes) of a row group in the file; its columns lie side by side."""
    columns = [group.column(number) for number in range(group.num_columns)]
    starts = [min(c.dictionary_page_offset or c.data_page_offset, c.data_page_offset) for c in columns]
    ends = [start + column.total_compressed_size for start, column in zip(starts, columns, strict=True)]
    size = max(ends) - min(starts)
    if min(starts) < 0 or not 0 <= size <= MAX_ROW_BYTES * (shard.samples + 1):
        raise ManifestError(f"{INDEX_NAME}, {shard.name}: its row group claims {size} bytes at {min(starts)}")
    return min(starts), size


def _open_parquet(file: Any) -> Any:
    import pyarrow.parquet as pq

    # Buffering ahead starts Arrow's threads, which abort a process that ends soon after; `hold` does it here.
    return pq.ParquetFile(file, page_checksum_verification=True, pre_buffer=False)


def _schema() -> pa.Schema:
    import pyarrow as pa

    columns = [("shard", pa.int32()), ("key", pa.string()), ("image_format", pa.string())]
    columns += [(name, pa.from_numpy_dtype(kind)) for name, kind in NUMBER_TYPES.items()]
    lists = (("class_ids", pa.uint16()), ("areas", pa.int32()))
    every = [pa.field(name, kind, nullable=False) for name, kind in columns]
    every += [pa.field(n, pa.list_(pa.field("element", k, nullable=False)), nullable=False) for n, k in lists]
    return pa.schema(every)


def _to_table(rows: ShardIndex, number: int) -> pa.Table:
    import pyarrow as pa

    offsets = pa.array(rows.label_offsets.astype(np.int32))
    element = _schema().field("class_ids").type, _schema().field("areas").type
    columns = [pa.array(np.full(len(rows), number, np.int32)), pa.array(rows.keys, pa.string())]
    columns += [
        pa.array(rows.image_format, pa.string()),
        *(pa.array(getattr(rows, name)) for name in NUMBER_TYPES),
    ]
    for kind, values in zip(element, (rows.flat_class_ids, rows.flat_areas), strict=True):
        columns.append(pa.ListArray.from_arrays(offsets, pa.array(values), type=kind))
    return pa.Table.from_arrays(columns, schema=_schema())


def _from_table(table: pa.Table, number: int) -> ShardIndex:
    columns = {name: table.column(name).combine_chunks() for name in table.column_names}
    if (
        any(column.null_count for column in columns.values())
        or (_values(columns["shard"], np.int32) != number).any()
    ):
        raise ManifestError(f"{INDEX_NAME}: row group {number} holds rows of another shard, or none")
    ids, areas = columns["class_ids"], columns["areas"]
    counts = np.diff(_values(ids.offsets, np.int32)).astype(np.int64)
    if not np.array_equal(counts, np.diff(_values(areas.offsets, np.int32))):
        raise ManifestError(f"{INDEX_NAME}: row group {number} has other numbers of class ids than of areas")
    return ShardIndex(
        keys=tuple(columns["key"].to_pylist()),
        image_format=tuple(columns["image_format"].to_pylist()),
        label_offsets=np.concatenate([[0], np.cumsum(counts)]),
        flat_class_ids=_values(ids.flatten(), np.uint16),
        flat_areas=_values(areas.flatten(), np.int32),
        **{name: _values(columns[name], kind) for name, kind in NUMBER_TYPES.items()},
    )


def _values(array: pa.Array, kind: type[np.generic]) -> Numbers:
    """A view of an Arrow array of numbers without nulls; its own `to_numpy` would load pandas (seconds)."""
    if not len(array):
        return np.empty(0, kind)
    return np.frombuffer(array.buffers()[1], kind, len(array), array.offset * np.dtype(kind).itemsize)
