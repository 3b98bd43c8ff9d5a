"""The manifest is the truth about a split: what it holds, which shards, and their digests.

One JSON file, written last and by rename: no manifest, no data set. Its fingerprint covers content only
(format version, classes, and of each shard in order the digests of its bytes and of its index rows), so two
builds of the same content agree whatever machine or settings made them; a checksum over everything guards
the rest. `open_split` reads the manifest alone; index rows are fetched shard by shard, when asked for, so
that a data set of 10^8 samples opens in the time of its shard list.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maskshards.shards.errors import ManifestError, StoreError, UnreachableError
from maskshards.shards.format.index import INDEX_NAME, SampleEntry, ShardIndex, ShardInfo
from maskshards.shards.format.index_parquet import IndexFile, IndexReader, write_index
from maskshards.shards.format.locate import MANIFEST_NAME, splits_below, what_is_there
from maskshards.shards.format.record import FORMAT_VERSION
from maskshards.shards.storage.atomic_write import replacing
from maskshards.shards.storage.base import FILE_NAME, Store, believed
from maskshards.shards.storage.foreign_file import check_sparse
from maskshards.shards.storage.open_store import open_store

FORMAT_NAME = "maskshards"
MAX_MANIFEST_BYTES = 1 << 29  # about two million shards
Color = tuple[int, int, int]

__all__ = ["INDEX_NAME", "MANIFEST_NAME", "SampleEntry", "ShardIndex", "ShardInfo"]  # offered here too


@dataclass(frozen=True, slots=True)
class Manifest:
    """One split. `write_split` fills in the digests of the index rows and the fingerprint."""

    dataset: str
    split: str
    classes: tuple[str, ...]  # names; the class id of a name is its place
    shards: tuple[ShardInfo, ...]
    label_rule: dict[str, Any] = field(default_factory=dict)  # JSON: how source values became class ids
    palette: tuple[Color, ...] | None = None  # RGB of each class
    settings: dict[str, Any] = field(default_factory=dict)  # JSON: what produced it; not in the fingerprint
    rejects: tuple[dict[str, str], ...] = ()  # {"name", "reason"} of inputs that were left out
    fingerprint: str = ""
    format_version: int = FORMAT_VERSION
    index_sha256: str = ""  # of the whole file samples.parquet; '' in manifests of early versions

    @property
    def num_samples(self) -> int:
        """Of all shards."""
        return sum(shard.samples for shard in self.shards)

    @property
    def shard_samples(self) -> NDArray[np.int64]:
        """(S,) samples of each shard."""
        return np.array([shard.samples for shard in self.shards], np.int64)

    @property
    def class_ids(self) -> tuple[int, ...]:
        """The class id of each name."""
        return tuple(range(len(self.classes)))

    @property
    def reduce_zero_label(self) -> bool:
        """Whether source value 0 was ignored and k became k - 1."""
        return bool(self.label_rule.get("reduce_zero_label", False))

    def content_digest(self) -> str:
        """What `fingerprint` must be: sha256 hex over content, in JSON without spaces."""
        shards = [[s.samples, s.bytes, s.sha256, s.index_sha256] for s in self.shards]
        return _digest({"format_version": self.format_version, "classes": self.classes, "shards": shards})

    def to_bytes(self) -> bytes:
        """The file manifest.json."""
        classes: list[dict[str, Any]] = [{"id": i, "name": name} for i, name in enumerate(self.classes)]
        for entry, color in zip(classes, self.palette or (), strict=False):
            entry["color"] = list(color)
        facts = {
            "format": FORMAT_NAME,
            "format_version": self.format_version,
            "dataset": self.dataset,
            "split": self.split,
            "num_samples": self.num_samples,
            "fingerprint": self.fingerprint,
            "classes": classes,
            "label_rule": self.label_rule,
            "index": INDEX_NAME,
            **({"index_sha256": self.index_sha256} if self.index_sha256 else {}),
            "shards": [asdict(shard) for shard in self.shards],
            "settings": self.settings,
            "rejects": list(self.rejects),
        }
        facts["checksum"] = _digest(facts)
        return (json.dumps(facts, indent=1) + "\n").encode()


def parse_manifest(data: bytes) -> Manifest:
    """The manifest in a file's bytes. ManifestError for anything but the output of `Manifest.to_bytes`.

    Fields that this version does not know are allowed and covered by the checksum.
    """
    try:
        check_sparse(data, ",[{")
        facts = json.loads(data)
        if not isinstance(facts, dict) or facts.get("format") != FORMAT_NAME:
            raise ManifestError(f'{MANIFEST_NAME} is of another program: it lacks "format": "{FORMAT_NAME}"')
        if facts["format_version"] != FORMAT_VERSION:
            raise ManifestError(
                f"{MANIFEST_NAME} has format version {facts['format_version']}, this program reads"
                f" {FORMAT_VERSION}; use the maskshards that wrote it, or a newer one"
            )
        checksum = facts.pop("checksum")
        if checksum != _digest(facts):
            raise ManifestError(
                f"{MANIFEST_NAME} was changed or damaged: its checksum does not fit; fetch it again"
            )
        _check_types(facts)
        colors = [tuple(entry["color"]) for entry in facts["classes"] if "color" in entry]
        manifest = Manifest(
            dataset=facts["dataset"],
            split=facts["split"],
            classes=tuple(entry["name"] for entry in facts["classes"]),
            shards=tuple(_shard_info(entry) for entry in facts["shards"]),
            label_rule=facts["label_rule"],
            palette=tuple(colors) or None,
            settings=facts["settings"],
            rejects=tuple(facts["rejects"]),
            fingerprint=facts["fingerprint"],
            index_sha256=facts.get("index_sha256", ""),
        )
        listed = [entry["id"] for entry in facts["classes"]], facts["num_samples"], facts["index"]
    except ManifestError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise ManifestError(f"{MANIFEST_NAME} cannot be read: {reason}") from error
    _check(manifest, listed)
    return manifest


def _check_types(facts: dict[str, Any]) -> None:
    """TypeError, which `parse_manifest` explains, where a field holds another kind of value."""
    kinds: dict[str, type] = {
        "dataset": str,
        "split": str,
        "label_rule": dict,
        "settings": dict,
        "fingerprint": str,
    }
    if not isinstance(facts.get("index_sha256", ""), str):
        raise TypeError("index_sha256 is no text")
    for name, kind in {**kinds, "rejects": list, "classes": list, "shards": list}.items():
        if not isinstance(facts[name], kind):
            raise TypeError(f"{name} is a {type(facts[name]).__name__}, expected {kind.__name__}")
    if not all(type(facts["num_samples"]) is int and type(entry["id"]) is int for entry in facts["classes"]):
        raise TypeError("class ids and numbers of samples are integers")
    if not all(isinstance(entry["name"], str) for entry in (*facts["classes"], *facts["rejects"])):
        raise TypeError("names are strings")
    colors = [entry["color"] for entry in facts["classes"] if "color" in entry]
    if not all(len(color) == 3 and all(type(v) is int and 0 <= v <= 255 for v in color) for color in colors):
        raise TypeError("colors are three integers from 0 to 255")
    if not all(isinstance(entry["reason"], str) for entry in facts["rejects"]):
        raise TypeError("rejects have a name and a reason")


def _check(manifest: Manifest, listed: tuple[list[int], int, str]) -> None:
    names = [shard.name for shard in manifest.shards]
    if listed != (list(manifest.class_ids), manifest.num_samples, INDEX_NAME):
        raise ManifestError(
            f"{MANIFEST_NAME} contradicts itself in class ids, number of samples or index name"
        )
    if len(set(names)) != len(names):
        raise ManifestError(f"{MANIFEST_NAME} lists a shard twice")
    if manifest.palette is not None and len(manifest.palette) != len(manifest.classes):
        raise ManifestError(f"{MANIFEST_NAME} gives colors to some classes only")
    if manifest.fingerprint != manifest.content_digest():
        found, expected = manifest.fingerprint, manifest.content_digest()
        raise ManifestError(f"{MANIFEST_NAME} has fingerprint {found}, its content has {expected}")


def _shard_info(facts: dict[str, Any]) -> ShardInfo:
    info = ShardInfo(**facts)
    numbers, digests = (info.samples, info.bytes), (info.sha256, info.index_sha256)
    if not FILE_NAME.fullmatch(info.name) or not info.name.endswith(".tar"):
        raise ManifestError(f"{MANIFEST_NAME} lists shard {info.name!r}, which is not a plain tar file name")
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise ManifestError(f"{MANIFEST_NAME}: {info.name} has no sane counts: {numbers}")
    if not all(len(digest) == 64 and set(digest) <= set("0123456789abcdef") for digest in digests):
        raise ManifestError(f"{MANIFEST_NAME}: {info.name} has no sha256 digests")
    return info


def _digest(facts: dict[str, Any]) -> str:
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def is_as_written(data: bytes) -> bool:
    """Whether the bytes of a manifest are those that `Manifest.to_bytes` of any version writes.

    Its checksum covers values, and a bit may change that changes no value.
    """
    return data == (json.dumps(json.loads(data), indent=1) + "\n").encode()


def finish_manifest(manifest: Manifest, shards: Sequence[ShardInfo], index_sha256: str = "") -> Manifest:
    """The manifest with the shards that `write_index` returned, the digest of its file, and its fingerprint.

    That digest stays out of the fingerprint: other versions of pyarrow write the same rows in other bytes.
    """
    finished = replace(manifest, shards=tuple(shards), fingerprint="", index_sha256=index_sha256)
    return replace(finished, fingerprint=finished.content_digest())


def write_split(
    folder: str | Path, manifest: Manifest, entries_per_shard: Iterable[Sequence[SampleEntry]]
) -> Manifest:
    """Publish a local folder that holds the shards already: the index, then the manifest, each by rename.

    `entries_per_shard` may be a generator; one shard's rows are in memory at a time. Returns the finished
    manifest. The same manifest and rows give the same bytes (with the same pyarrow).
    """
    folder = Path(folder)
    with replacing(folder / INDEX_NAME) as hidden:
        shards = write_index(hidden, manifest.shards, entries_per_shard)
        with open(hidden, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        manifest = finish_manifest(manifest, shards, digest)
    with replacing(folder / MANIFEST_NAME) as hidden:
        hidden.write_bytes(manifest.to_bytes())
    return manifest


class Split:
    """An open split. May be used from several threads and be sent to another process."""

    def __init__(self, manifest: Manifest, store: Store) -> None:
        self.manifest, self.store = manifest, store
        self._start()

    def _start(self) -> None:
        self._process = os.getpid()
        self._reader: IndexReader | None = None
        self._lock = threading.Lock()

    @property
    def base(self) -> str:
        """The folder or URL."""
        return self.store.base

    def index(self, shard_number: int) -> ShardIndex:
        """The rows of one shard, read and checked anew at each call. ManifestError where they are wrong."""

        def read() -> ShardIndex:
            try:
                return self._index_reader().read(shard_number)
            except ManifestError:
                with self._lock:  # what it read of the file is not to be trusted either
                    self._reader = None
                raise

        return believed(read, ManifestError, self.store, INDEX_NAME)

    def _index_reader(self) -> IndexReader:
        if self._process != os.getpid():  # forked, perhaps while another thread held the lock
            self._start()
        with self._lock:
            if self._reader is None:
                self._reader = IndexReader(IndexFile(self.store), self.manifest.shards)
            return self._reader

    def close(self) -> None:
        """Let go of files and connections; the split may be used again afterwards."""
        self._start()  # without waiting for the lock: its holder may wait for what is closed here
        self.store.close()

    def __getstate__(self) -> tuple[Manifest, Store]:
        return self.manifest, self.store

    def __setstate__(self, state: tuple[Manifest, Store]) -> None:
        self.manifest, self.store = state
        self._start()


def open_split(place: str | Path) -> Split:
    """The split in a folder or below a URL. ManifestError says what was found where there is none.

    Over a network, a manifest that arrives damaged is asked for again.
    """
    store = open_store(place)
    try:
        return Split(_read_manifest(store), store)
    except ManifestError as error:
        store.close()
        raise ManifestError(f"{place}: {error}") from error
    except StoreError as error:
        store.close()
        raise ManifestError(what_is_there(str(place), error)) from error


def _read_manifest(store: Store) -> Manifest:
    def read() -> Manifest:
        num_bytes = store.size(MANIFEST_NAME)
        if num_bytes > MAX_MANIFEST_BYTES:
            raise ManifestError(f"{MANIFEST_NAME} has {num_bytes} bytes, more than {MAX_MANIFEST_BYTES}")
        return parse_manifest(store.read(MANIFEST_NAME, 0, num_bytes))

    return believed(read, ManifestError, store, MANIFEST_NAME)


def open_splits(place: str | Path) -> tuple[Split, ...]:
    """The split at `place`, or else all splits one step below it, by name."""
    try:
        return (open_split(place),)
    except ManifestError as error:
        below = [] if isinstance(error.__cause__, UnreachableError) else splits_below(str(place))
        if not below:
            raise
    return tuple(open_split(f"{str(place).rstrip('/')}/{name}") for name in below)
