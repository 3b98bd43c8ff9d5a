"""The sample index: one row a sample, one Parquet row group a shard, so a reader fetches what it needs.

`samples.parquet` can be read without our code. Parquet's own checks do not cover its footer, and a footer bit
can move an offset unseen; therefore the manifest holds, for each shard, a digest over the *values* of its
rows, and every row group is checked against it when read. That digest does not depend on the library that
wrote the file. Loading pyarrow takes a while, so it is imported where it is used: workers that only write
shards never do.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from shards.errors import ManifestError
from shards.record import IMAGE_FORMATS, KEY, MAX_JSON_BYTES
from shards.rle import IGNORE, MAX_PIXELS

if TYPE_CHECKING:
    import pyarrow as pa

INDEX_NAME = "samples.parquet"
TAR_BLOCK, TAR_END = 512, 1024
MAX_ROW_BYTES = 1 << 20  # of one sample in the index: 65,535 classes with their areas fit
CRC_COLUMNS = ("image_crc32c", "json_crc32c", "runs_crc32c")
SIZE_COLUMNS = ("height", "width", "image_size", "json_size", "runs_size")
OFFSET_COLUMNS = ("image_offset", "json_offset", "runs_offset")
NUMBER_TYPES: dict[str, type[np.generic]] = {
    **dict.fromkeys(SIZE_COLUMNS, np.int32),
    **dict.fromkeys(OFFSET_COLUMNS, np.int64),
    **dict.fromkeys(CRC_COLUMNS, np.uint32),
}
Numbers = NDArray[Any]


@dataclass(frozen=True, slots=True)
class ShardInfo:
    """One shard as the manifest lists it."""

    name: str  # file name inside the split's folder
    samples: int
    bytes: int
    sha256: str  # hex, of the tar
    index_sha256: str = ""  # hex, of the values of its index rows; filled in by `write_index`


@dataclass(frozen=True, slots=True)
class SampleEntry:
    """One sample as the index lists it. Offsets and sizes are bytes of the members' data in the tar."""

    key: str
    image_format: str
    height: int
    width: int
    image_offset: int
    image_size: int
    image_crc32c: int
    json_offset: int
    json_size: int
    json_crc32c: int
    runs_offset: int
    runs_size: int
    runs_crc32c: int
    class_ids: tuple[int, ...]  # ascending, those present
    areas: tuple[int, ...]  # pixels of each

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {**asdict(self), "class_ids": list(self.class_ids), "areas": list(self.areas)}

    @classmethod
    def from_json(cls, facts: dict[str, Any]) -> SampleEntry:
        """The inverse of `to_json`; KeyError or TypeError for anything else."""
        known = {field.name: facts[field.name] for field in fields(cls)}
        return cls(**{**known, "class_ids": tuple(known["class_ids"]), "areas": tuple(known["areas"])})


@dataclass(frozen=True, slots=True, eq=False)
class ShardIndex:
    """The rows of one shard as columns; N samples, in the order in which they stand in the tar."""

    keys: tuple[str, ...]  # (N,)
    image_format: tuple[str, ...]  # (N,) "jpg" or "png"
    height: Numbers  # (N,) int32
    width: Numbers  # (N,) int32
    image_offset: Numbers  # (N,) int64
    image_size: Numbers  # (N,) int32
    image_crc32c: Numbers  # (N,) uint32
    json_offset: Numbers
    json_size: Numbers
    json_crc32c: Numbers
    runs_offset: Numbers
    runs_size: Numbers
    runs_crc32c: Numbers
    label_offsets: Numbers  # (N + 1,) int64: sample i has the flat entries from [i] to [i + 1]
    flat_class_ids: Numbers  # (L,) uint16
    flat_areas: Numbers  # (L,) int32, pixels

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def class_ids(self) -> list[Numbers]:
        """N ascending arrays of class ids."""
        return np.split(self.flat_class_ids, self.label_offsets[1:-1]) if len(self) else []

    @property
    def areas(self) -> list[Numbers]:
        """N arrays of pixels, beside `class_ids`."""
        return np.split(self.flat_areas, self.label_offsets[1:-1]) if len(self) else []

    def entry(self, row: int) -> SampleEntry:
        """One row."""
        numbers: dict[str, Any] = {name: int(getattr(self, name)[row]) for name in NUMBER_TYPES}
        labels = slice(self.label_offsets[row], self.label_offsets[row + 1])
        numbers["class_ids"] = tuple(self.flat_class_ids[labels].tolist())
        numbers["areas"] = tuple(self.flat_areas[labels].tolist())
        return SampleEntry(key=self.keys[row], image_format=self.image_format[row], **numbers)

    @classmethod
    def of_entries(cls, entries: Sequence[SampleEntry]) -> ShardIndex:
        """The columns of some rows."""
        numbers = {
            name: np.array([getattr(entry, name) for entry in entries], kind)
            for name, kind in NUMBER_TYPES.items()
        }
        counts = [len(entry.class_ids) for entry in entries]
        return cls(
            keys=tuple(entry.key for entry in entries),
            image_format=tuple(entry.image_format for entry in entries),
            label_offsets=np.cumsum([0, *counts], dtype=np.int64),
            flat_class_ids=np.array([label for entry in entries for label in entry.class_ids], np.uint16),
            flat_areas=np.array([area for entry in entries for area in entry.areas], np.int32),
            **numbers,
        )

    def sha256(self) -> str:
        """Hex digest of all values: keys, formats, then the numbers little-endian in field order."""
        digest = hashlib.sha256(f"{len(self)} {len(self.flat_class_ids)}\n".encode())
        digest.update("\n".join((*self.keys, *self.image_format, "")).encode())
        for field in fields(self)[2:]:
            values = getattr(self, field.name)
            digest.update(values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes())
        return digest.hexdigest()


def check_rows(rows: ShardIndex, shard: ShardInfo) -> None:
    """ManifestError unless the rows describe exactly the bytes of a tar of that size, and sane images."""
    where = f"{INDEX_NAME}, {shard.name}"
    if len(rows) != shard.samples:
        raise ManifestError(f"{where}: {len(rows)} rows, the manifest says {shard.samples} samples")
    strange = [key for key in rows.keys if not KEY.fullmatch(key)]
    if strange or len(set(rows.keys)) != len(rows):
        raise ManifestError(f"{where}: its keys repeat or break the grammar: {strange[:3]}")
    if set(rows.image_format) - set(IMAGE_FORMATS):
        raise ManifestError(
            f"{where}: image formats {sorted(set(rows.image_format))}, expected {IMAGE_FORMATS}"
        )
    sizes = np.stack([getattr(rows, name).astype(np.int64) for name in SIZE_COLUMNS])
    pixels = sizes[0] * sizes[1]
    if len(rows) and (sizes.min() < 1 or pixels.max() > MAX_PIXELS or sizes[3].max() > MAX_JSON_BYTES):
        raise ManifestError(f"{where}: a size of an image or a member is not positive or beyond its limit")
    if (rows.flat_class_ids == IGNORE).any() or (rows.flat_areas < 1).any():
        raise ManifestError(f"{where}: a class id or an area is out of range")
    # The members fill the tar without a gap, so offsets follow from sizes and no two can overlap.
    members = sizes[2:].T.reshape(-1)
    offsets = np.stack([getattr(rows, name) for name in OFFSET_COLUMNS], axis=1).reshape(-1)
    ends = np.cumsum(TAR_BLOCK + -(-members // TAR_BLOCK) * TAR_BLOCK)
    expected = np.concatenate([[0], ends])[:-1] + TAR_BLOCK
    end = int(ends[-1]) if len(rows) else 0
    if not np.array_equal(offsets, expected) or end + TAR_END != shard.bytes:
        raise ManifestError(
            f"{where}: offsets and sizes do not fill the shard's {shard.bytes} bytes; build again"
        )


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

    def __init__(self, file: BinaryIO | Any, shards: Sequence[ShardInfo]) -> None:
        self._shards = shards
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
            rows = self._guarded(lambda: self._row_group(number, shard), where)
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
        return _from_table(self._file.read_row_group(number, use_threads=False), number)

    @staticmethod
    def _guarded(read: Any, where: str) -> Any:
        """Parquet's many ways to fail, as one; errors of our own and of the store pass through."""
        import pyarrow as pa

        from shards.errors import ShardError, StoreError

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


def _open_parquet(file: Any) -> Any:
    import pyarrow.parquet as pq

    return pq.ParquetFile(file, page_checksum_verification=True)


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
