"""What the index says of shards and samples: rows, the same rows as columns, and what makes them credible.

The manifest holds, for each shard, a digest over the *values* of its rows, which is checked whenever rows
are read, and the rows must describe the bytes of the tar without gap or overlap. `index_parquet` keeps
them in a file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maskshards.shards.errors import ManifestError
from maskshards.shards.format.record import IMAGE_FORMATS, KEY, MAX_JSON_BYTES
from maskshards.shards.format.rle import IGNORE, MAX_PIXELS

INDEX_NAME = "samples.parquet"
TAR_BLOCK, TAR_END = 512, 1024
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
