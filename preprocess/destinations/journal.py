"""What is remembered about each finished shard until the split is published.

A journal is one JSON file beside the shards. It is written after its shard has its final name, so a journal
without a shard, or with a shard of another digest, can only mean that somebody touched the folder; then the
shard is made again.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from typing import Any

from maskshards.preprocess.destinations.local import BUILD_FOLDER, Destination
from maskshards.preprocess.errors import Reject
from maskshards.shards.format.index import SampleEntry, ShardInfo

CHECKSUM = "checksum"  # of all else in the file: a changed number would be published in the index
COLUMNS = tuple(field.name for field in fields(SampleEntry))


@dataclass(frozen=True, slots=True)
class Journal:
    """One finished shard."""

    plan: str  # digest of the plan that it belongs to
    sources: str  # sha256 hex over the stamps of its source files, '' where the source has none
    shard: ShardInfo
    entries: tuple[SampleEntry, ...]
    rejects: tuple[Reject, ...]

    def to_bytes(self) -> bytes:
        """As JSON."""
        facts = {
            "plan": self.plan,
            "sources": self.sources,
            "shard": asdict(self.shard),
            "entries": [[getattr(entry, name) for name in COLUMNS] for entry in self.entries],
            "rejects": [asdict(reject) for reject in self.rejects],
        }
        return json.dumps({**facts, CHECKSUM: _digest(facts)}).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Journal:
        """The inverse of `to_bytes`.

        ValueError, KeyError, TypeError, AttributeError or RecursionError for anything else.
        """
        facts = json.loads(data)
        if facts.pop(CHECKSUM) != _digest(facts):
            raise ValueError("its checksum does not fit: a disk, or somebody, changed it")
        return cls(
            facts["plan"],
            facts["sources"],
            ShardInfo(**facts["shard"]),
            tuple(_entry(values) for values in facts["entries"]),
            tuple(Reject(**reject) for reject in facts["rejects"]),
        )


def _digest(facts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _entry(values: list[Any]) -> SampleEntry:
    known = dict(zip(COLUMNS, values, strict=True))
    return SampleEntry(**{**known, "class_ids": tuple(known["class_ids"]), "areas": tuple(known["areas"])})


def journal_name(shard_name: str) -> str:
    """Where the journal of a shard is, below the split's folder."""
    return f"{BUILD_FOLDER}/{shard_name}.json"


def read_journal(destination: Destination, shard_name: str) -> Journal | None:
    """The journal of a shard; None where there is none or it cannot be read, which only means more work."""
    data = destination.read(journal_name(shard_name))
    if data is None:
        return None
    try:
        return Journal.from_bytes(data)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def write_journal(destination: Destination, journal: Journal) -> None:
    """Remember a finished shard."""
    destination.write(journal_name(journal.shard.name), journal.to_bytes())
