"""The unit of work: one shard, from source files to its final name; done anywhere, any number of times.

Write to a scratch file, sync, read every member back and compare, rename, note it in the journal. Done
again, it finds the journal and the shard, checks the digest, and leaves them alone. Memory: one sample, and
the index rows of one shard.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import google_crc32c

from maskshards.preprocess.convert import judged, read_records
from maskshards.preprocess.destinations.journal import Journal, read_journal, write_journal
from maskshards.preprocess.destinations.local import Destination
from maskshards.preprocess.errors import BuildError, Reject, RejectedInput
from maskshards.preprocess.inputs.image_policy import ImagePolicy
from maskshards.preprocess.inputs.tiles import untiled_key
from maskshards.preprocess.mask_guard import Group, Kinds, kind_of, together
from maskshards.preprocess.sources.source import Source, SourceItem
from maskshards.shards.errors import SampleError, ShardError
from maskshards.shards.format.index import SampleEntry, ShardInfo
from maskshards.shards.format.record import Record
from maskshards.shards.format.tar import TarWriter, read_members

READ_BACK_BYTES = 1 << 20  # at once


@dataclass(frozen=True, slots=True)
class ShardTask:
    """Everything that is needed to make one shard; it travels to other processes and machines."""

    source: Source
    destination: Destination
    split: str
    policy: ImagePolicy
    plan: str  # digest of the plan
    shard_name: str
    names: tuple[str, ...]  # the samples, in order

    def __str__(self) -> str:
        return self.shard_name


@dataclass(frozen=True, slots=True)
class ShardOutcome:
    """What the builder hears of a finished task; the rest stands in the journal."""

    shard_name: str
    planned: int  # samples in the plan, those refused included
    rejects: int
    reused: bool  # the shard was there already
    kinds: Kinds = field(default_factory=dict)  # of its label maps


@dataclass(frozen=True, slots=True)
class _Sample:
    """One sample of a task before it is read."""

    place: str  # of its image, for messages
    item: SourceItem | None  # None where the name itself is refused
    stamp: str
    fault: str = ""  # why there is no item


def build_shard(task: ShardTask) -> ShardOutcome:
    """Make the shard, or find that it is there.

    OSError where the destination fails, BuildError where it lies.
    """
    samples = [_find(task, name) for name in task.names]
    sources = _digest([sample.stamp for sample in samples])
    journal = read_journal(task.destination, task.shard_name)
    if journal is not None and _is_current(journal, task, sources):
        return _outcome(task, journal, samples, reused=True)
    with task.destination.scratch(task.shard_name) as path:
        entries, rejects, shard, crc32c = _write(task, samples, path)
        _read_back(path, shard, crc32c, entries)
        task.destination.publish(path, task.shard_name, shard.sha256)
    journal = Journal(task.plan, sources, shard, entries, rejects)
    write_journal(task.destination, journal)
    return _outcome(task, journal, samples, reused=False)


def _outcome(task: ShardTask, journal: Journal, samples: list[_Sample], *, reused: bool) -> ShardOutcome:
    labels = {sample.item.key: sample.item.label_path for sample in samples if sample.item is not None}
    kinds = together(
        {
            kind_of(entry.class_ids, entry.height * entry.width - sum(entry.areas)): Group(
                1, (labels.get(entry.key) or labels.get(untiled_key(entry.key), entry.key),)
            )
        }
        for entry in journal.entries
    )
    return ShardOutcome(task.shard_name, len(task.names), len(journal.rejects), reused, kinds)


def _is_current(journal: Journal, task: ShardTask, sources: str) -> bool:
    """A shard that lost samples is made again: its inputs may have been mended since."""
    same = (journal.plan, journal.sources, journal.shard.name) == (task.plan, sources, task.shard_name)
    return same and not journal.rejects and task.destination.sha256(task.shard_name) == journal.shard.sha256


def _digest(stamps: list[str]) -> str:
    return hashlib.sha256("\0".join(stamps).encode()).hexdigest()


def _find(task: ShardTask, name: str) -> _Sample:
    try:
        item = task.source.item(task.split, name)
    except SampleError as error:  # a name that cannot become a key
        return _Sample(name, None, "", str(error))
    return _Sample(item.image_path, item, task.source.stamp(item))


def _write(
    task: ShardTask, samples: list[_Sample], path: Path
) -> tuple[tuple[SampleEntry, ...], tuple[Reject, ...], ShardInfo, int]:
    """What the shard holds, what was refused, the shard, and the crc32c of its bytes."""
    entries: list[SampleEntry] = []
    rejects: list[Reject] = []
    with TarWriter(path) as writer:
        for sample in samples:
            try:
                entries += _add_all(writer, _records(task, sample), sample.place)
            except (RejectedInput, SampleError) as refused:
                rejects.append(Reject(sample.place, str(refused)))
    shard = ShardInfo(task.shard_name, len(entries), writer.num_bytes, writer.sha256)
    return tuple(entries), tuple(rejects), shard, writer.crc32c


def _records(task: ShardTask, sample: _Sample) -> list[Record]:
    """The records of a sample, one or its tiles; errors as `judged` makes them."""
    if sample.item is None:
        raise RejectedInput(sample.fault)
    with judged(sample.place):
        return read_records(task.source, sample.item, sample.stamp, task.policy)


def _add_all(writer: TarWriter, records: list[Record], place: str) -> list[SampleEntry]:
    """Append the records of one sample, all or none."""
    before = writer.num_bytes
    try:
        return [_add(writer, record) for record in records]
    except (RejectedInput, SampleError) as error:
        if writer.num_bytes != before:
            raise BuildError(f"{place}: a tile has the key of another sample: {error}; rename it") from error
        raise


def _add(writer: TarWriter, record: Record) -> SampleEntry:
    """Append a record. RejectedInput where nothing was written; else the shard's place is at fault."""
    before = writer.num_bytes
    try:
        return writer.add(record)
    except (OSError, SampleError, MemoryError):
        raise
    except Exception as error:
        if writer.num_bytes != before:
            raise
        raise RejectedInput(f"it does not fit the format ({type(error).__name__}: {error})") from error


def _read_back(path: Path, shard: ShardInfo, crc32c: int, entries: tuple[SampleEntry, ...]) -> None:
    """Every byte by checksum, every member by its own at the place that the index names.

    The digest was taken of what was written; whether a disk gave back the same, a checksum of 32 bits tells
    in a tenth of the time.
    """
    with open(path, "rb") as file:
        found = 0
        while block := file.read(READ_BACK_BYTES):
            found = google_crc32c.extend(found, block)
        if found != crc32c:
            raise BuildError(
                f"{shard.name}: crc32c {found:08x} on reading back, {crc32c:08x} was written; the disk or "
                "memory is at fault"
            )
        for entry in entries:
            try:
                read_members(file, entry, shard=shard.name)
            except ShardError as error:
                raise BuildError(
                    f"{shard.name}: a sample that was just written does not read back: {error}"
                ) from error
