"""Tar shards: written so that equal samples give equal bytes, read by index with every checksum checked.

Plain USTAR: regular files only, mode 0644, time, user and group 0, no user names, two zero blocks at the end
and nothing after them. Members of a sample lie side by side (image, JSON, runs), so that one range read gets
a whole sample. The writer hashes while it writes: a shard's digest costs no second pass.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import google_crc32c

from maskshards.shards.errors import SampleError
from maskshards.shards.format.index import SampleEntry
from maskshards.shards.format.record import (
    LONGEST_NAME,
    LONGEST_PREFIX,
    Members,
    Record,
    member_names,
    split_name,
    to_members,
)

BLOCK = 512
END = bytes(2 * BLOCK)
MAX_MEMBER_BYTES = 8**11 - 1  # eleven octal digits
FIXED = b"0000644\0" + b"0000000\0" * 2  # mode, user, group

ByteReader = Callable[[int, int], bytes]  # (offset, size) -> exactly that many bytes


class TarWriter:
    """Writes one shard to a path or an open binary file. Leaving it by an exception leaves no end marker."""

    def __init__(self, target: str | Path | BinaryIO) -> None:
        self._owned = isinstance(target, (str, Path))
        self._file: BinaryIO = open(target, "xb") if isinstance(target, (str, Path)) else target
        self._digest = hashlib.sha256()
        self._keys: set[str] = set()
        self.num_bytes = 0  # written so far; after close, the size of the shard
        self.sha256 = ""  # hex digest of the shard, after close
        self.crc32c = 0  # of all bytes written so far

    def add(self, record: Record) -> SampleEntry:
        """Append one sample; says where its members lie. SampleError for a bad record or a repeated key."""
        if record.key in self._keys:
            raise SampleError("the key is in this shard already; keys must be unique", key=record.key)
        members = to_members(record)
        places = [self._member(name, data) for name, data in members]
        self._keys.add(record.key)
        areas = record.runs.areas()[1:]
        (image_offset, image_crc32c), (json_offset, json_crc32c), (runs_offset, runs_crc32c) = places
        return SampleEntry(
            key=record.key,
            image_format=record.image_format,
            height=record.height,
            width=record.width,
            image_offset=image_offset,
            image_size=len(members[0][1]),
            image_crc32c=image_crc32c,
            json_offset=json_offset,
            json_size=len(members[1][1]),
            json_crc32c=json_crc32c,
            runs_offset=runs_offset,
            runs_size=len(members[2][1]),
            runs_crc32c=runs_crc32c,
            class_ids=tuple(record.runs.labels.tolist()),
            areas=tuple(areas.tolist()),
        )

    def close(self) -> None:
        """Write the end marker; a file that this writer opened is synced and closed."""
        try:
            self._write(END)
            if self._owned:
                self._file.flush()
                os.fsync(self._file.fileno())
            self.sha256 = self._digest.hexdigest()
        finally:  # a full disk is often noticed only here
            if self._owned:
                self._file.close()

    def __enter__(self) -> TarWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        elif self._owned:
            self._file.close()

    def _member(self, name: str, data: bytes) -> tuple[int, int]:
        """Write header, data and padding; (offset of the data, its crc32c)."""
        self._write(tar_header(name, len(data)))
        offset = self.num_bytes
        self._write(data)
        self._write(bytes(-len(data) % BLOCK))
        return offset, google_crc32c.value(data)

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._digest.update(data)
        self.crc32c = google_crc32c.extend(self.crc32c, data)
        self.num_bytes += len(data)


def tar_header(name: str, size: int) -> bytes:
    """The 512 bytes before a regular file of `size` bytes (POSIX.1-1988 ustar interchange format)."""
    parts = split_name(name)
    if parts is None or not name.isascii() or not 0 <= size <= MAX_MEMBER_BYTES:
        raise SampleError(f"member {name!r} of {size} bytes does not fit into a USTAR header")
    prefix, rest = parts
    start = rest.encode().ljust(LONGEST_NAME, b"\0") + FIXED + b"%011o\0" % size + b"%011o\0" % 0
    end = b"0" + bytes(LONGEST_NAME) + b"ustar\x0000" + bytes(80)  # no user, group or device
    end += prefix.encode().ljust(LONGEST_PREFIX, b"\0") + bytes(12)
    checksum = sum(start) + 8 * ord(" ") + sum(end)
    return start + b"%06o\0 " % checksum + end


def read_members(source: BinaryIO | ByteReader, entry: SampleEntry, *, shard: str = "") -> Members:
    """The three members of a sample, each checked against its crc32c; for `record.from_members`.

    `source` is an open local file, or a function from (offset, size) to bytes. SampleError names `shard`, key
    and member; an OSError of the source passes through.
    """
    first, whole = _read_sample(source, entry, shard)
    places = (
        (entry.image_offset, entry.image_size, entry.image_crc32c),
        (entry.json_offset, entry.json_size, entry.json_crc32c),
        (entry.runs_offset, entry.runs_size, entry.runs_crc32c),
    )
    members: Members = []
    for name, (offset, size, crc32c) in zip(member_names(entry.key, entry.image_format), places, strict=True):
        data = whole[offset - first : offset - first + size]
        check_member(data, name, size, crc32c, shard=shard, key=entry.key)
        members.append((name, data))
    return members


def read_image_and_runs(
    source: BinaryIO | ByteReader, entry: SampleEntry, *, shard: str
) -> tuple[bytes, bytes]:
    """What a training reads of a sample, each checked against its crc32c; the JSON is passed over.

    Raises as `read_members` does.
    """
    first, whole = _read_sample(source, entry, shard)
    image = whole[entry.image_offset - first : entry.image_offset - first + entry.image_size]
    runs = whole[entry.runs_offset - first : entry.runs_offset - first + entry.runs_size]
    for data, size, crc32c, which in (
        (image, entry.image_size, entry.image_crc32c, 0),
        (runs, entry.runs_size, entry.runs_crc32c, 2),
    ):
        if len(data) != size or google_crc32c.value(data) != crc32c:
            name = member_names(entry.key, entry.image_format)[which]
            check_member(data, name, size, crc32c, shard=shard, key=entry.key)
    return image, runs


def _read_sample(source: BinaryIO | ByteReader, entry: SampleEntry, shard: str) -> tuple[int, bytes]:
    """(offset in the shard, bytes) of all members of a sample, in one read."""
    read = source if callable(source) else _file_reader(source)
    first, last = entry.image_offset, entry.runs_offset + entry.runs_size
    # What lies between members is two headers and paddings, unless the index is false.
    apart = last - first - entry.image_size - entry.json_size - entry.runs_size
    if not (0 <= apart <= 4 * BLOCK and first >= BLOCK):
        raise SampleError(
            "the index puts its members apart; it is not of this shard", shard=shard, key=entry.key
        )
    return first, read(first, last - first)


def check_member(data: bytes, name: str, size: int, crc32c: int, *, shard: str, key: str) -> None:
    """SampleError unless `data` is the member that the index promises."""
    if len(data) != size:
        what = f"{name} has {len(data)} bytes, the index says {size}; the shard is cut short"
        raise SampleError(what, shard=shard, key=key)
    found = google_crc32c.value(data)
    if found != crc32c:
        what = f"{name} has crc32c {found:08x}, the index says {crc32c:08x}; fetch or build the shard again"
        raise SampleError(what, shard=shard, key=key)


def _file_reader(file: BinaryIO) -> ByteReader:
    return lambda offset, size: os.pread(file.fileno(), size, offset)
