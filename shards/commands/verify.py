"""`maskshards check`: read a data set as an adversary's and say everything that is wrong with it.

Without `--sample`, every byte of every file is read once: manifest and index must be the bytes that were
written, headers, members and padding of the shards exactly those that the index implies, digests must fit,
every mask must decode to its canonical form with the class ids and areas that JSON and index name, every
image's header must give the indexed size, no key may come twice, and no tar may stand beside those of the
manifest.
`--deep` also decodes the images. `--sample N` checks N samples spread evenly, for a quick look at a large
set; it reads no whole shard, so it compares lengths but no shard digests.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import struct
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zstandard
from PIL import Image
from tqdm import tqdm

from maskshards.shards.commands.root_files import root_faults
from maskshards.shards.decode.jpeg import decode_image
from maskshards.shards.errors import ManifestError, SampleError, StoreError, counted
from maskshards.shards.format.index import INDEX_NAME, OFFSET_COLUMNS, SIZE_COLUMNS, SampleEntry, ShardIndex
from maskshards.shards.format.locate import MANIFEST_NAME
from maskshards.shards.format.manifest import Split, is_as_written, open_splits
from maskshards.shards.format.record import from_members, member_names
from maskshards.shards.format.tar import BLOCK, END, check_member, tar_header
from maskshards.shards.storage.local import LocalStore
from maskshards.shards.storage.open_store import open_store

READ_BYTES = 8 << 20  # at once, unless one sample is larger
MAX_LISTED = 100  # faults of a split that are told in full; the rest are counted
PILLOW_NAMES = {"jpg": "JPEG", "png": "PNG"}


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong."""

    shard: str  # file name, '' where the fault is not in one shard
    key: str  # '' where the fault is not in one sample
    what: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command to `parser`."""
    parser.add_argument("url", help="a data set (OUT) or one of its splits (OUT/SPLIT); a folder or a URL")
    parser.add_argument("--sample", type=int, metavar="N", help="check only N samples of each split")
    parser.add_argument("--deep", action="store_true", help="decode every image as well")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """The verdict on every split."""
    if args.sample is not None and args.sample < 1:
        raise ValueError(f"--sample {args.sample}: give a number of samples, at least 1")
    verdicts = [check_split(split, args.sample, args.deep) for split in open_splits(args.url)]
    faults, notes = root_faults(open_store(args.url))
    ok = not faults and all(verdict["ok"] for verdict in verdicts)
    return {"ok": ok, "splits": verdicts, "root_faults": faults, "root_notes": notes}


def check_split(split: Split, num_samples: int | None = None, deep: bool = False) -> dict[str, Any]:
    """Check a split, or `num_samples` of it; the verdict as JSON values."""
    checker = _Checker(split, deep)
    faults, listed = 0, []
    for fault in checker.whole() if num_samples is None else checker.some(num_samples):
        faults += 1
        if faults <= MAX_LISTED:
            listed.append(asdict(fault))
    return {
        "ok": not faults,
        "place": split.base,
        "fingerprint": split.manifest.fingerprint,
        "samples_checked": checker.samples_checked,
        "masks_checked": checker.masks_checked,
        "bytes_read": checker.bytes_read,
        "index_digest": bool(split.manifest.index_sha256),
        "deep": deep,
        "num_faults": faults,
        "faults": listed,
    }


class _Checker:
    """One pass over a split."""

    def __init__(self, split: Split, deep: bool) -> None:
        self.split, self.deep = split, deep
        self.samples_checked = self.masks_checked = self.bytes_read = 0
        self._decompressor = zstandard.ZstdDecompressor()

    def whole(self) -> Iterator[Fault]:
        """Manifest and index, every shard, then what concerns all of them together."""
        yield from self._files_beside()
        key_digests = []
        # Shown on a terminal only, and on stderr.
        shards = tqdm(
            self.split.manifest.shards, self.split.manifest.split, unit="shard", disable=None, leave=False
        )
        for number, shard in enumerate(shards):
            try:
                rows = self.split.index(number)
                key_digests.append(_key_digests(rows.keys))
                yield from self._shard(shard.name, shard.bytes, shard.sha256, rows)
            except (ManifestError, StoreError) as error:
                yield Fault(shard.name, "", str(error))
        yield from self._repeated(key_digests)
        yield from self._strangers()

    def some(self, num_samples: int) -> Iterator[Fault]:
        """Samples spread evenly over the split."""
        starts = np.concatenate([[0], np.cumsum(self.split.manifest.shard_samples)])
        total = int(starts[-1])
        wanted = np.unique(np.linspace(0, total - 1, min(num_samples, total)).round().astype(np.int64))
        for number, shard in enumerate(self.split.manifest.shards):
            places = wanted[(wanted >= starts[number]) & (wanted < starts[number + 1])] - starts[number]
            try:
                found = self.split.store.size(shard.name)
                if found != shard.bytes:
                    yield Fault(shard.name, "", f"it has {found} bytes, the manifest says {shard.bytes}")
                if not len(places):
                    continue
                rows = self.split.index(number)
                for place in places.tolist():
                    entry = rows.entry(place)
                    extent = _extent(entry, 0)
                    data = self._read(shard.name, extent.start, extent.stop - extent.start)
                    yield from self._sample(shard.name, entry, data, extent.start)
            except (ManifestError, StoreError) as error:
                yield Fault(shard.name, "", str(error))

    def _shard(self, name: str, num_bytes: int, sha256: str, rows: ShardIndex) -> Iterator[Fault]:
        found = self.split.store.size(name)
        if found != num_bytes:
            yield Fault(name, "", f"it has {found} bytes, the manifest says {num_bytes}")
            return
        digest = hashlib.sha256()
        for first, last in _stretches(rows):
            start = int(rows.image_offset[first]) - BLOCK
            stop = int(rows.image_offset[last]) - BLOCK if last < len(rows) else num_bytes - len(END)
            data = memoryview(self._read(name, start, stop - start))
            digest.update(data)
            for place in range(first, last):
                entry = rows.entry(place)
                yield from self._sample(
                    name, entry, bytes(data[_extent(entry, start)]), entry.image_offset - BLOCK
                )
        end = self._read(name, num_bytes - len(END), len(END))
        if end != END:
            yield Fault(name, "", "it does not end in two empty blocks")
        digest.update(end)
        if digest.hexdigest() != sha256:
            yield Fault(name, "", f"it has sha256 {digest.hexdigest()}, the manifest says {sha256}")

    def _sample(self, shard: str, entry: SampleEntry, data: bytes, start: int) -> Iterator[Fault]:
        """What is wrong with a sample whose bytes, headers and padding too, begin at `start` of the shard."""
        self.samples_checked += 1
        try:
            self._check(data, entry, shard, start)
        except SampleError as error:
            yield Fault(shard, entry.key, error.what)

    def _check(self, data: bytes, entry: SampleEntry, shard: str, start: int) -> None:
        members, expected = [], b""
        names = member_names(entry.key, entry.image_format)
        for name, offset_column, size_column in zip(names, OFFSET_COLUMNS, SIZE_COLUMNS[2:], strict=True):
            offset, size = getattr(entry, offset_column) - start, getattr(entry, size_column)
            member = data[offset : offset + size]
            crc32c = getattr(entry, offset_column.replace("offset", "crc32c"))
            check_member(member, name, size, crc32c, shard=shard, key=entry.key)
            expected += tar_header(name, size) + member + bytes(-size % BLOCK)
            members.append((name, member))
        if data != expected:
            raise SampleError("a tar header or padding is not what this format writes")
        record = from_members(members, shard=shard, decompressor=self._decompressor)
        found = record.height, record.width, record.runs.labels.tolist(), record.runs.areas()[1:].tolist()
        if found != (entry.height, entry.width, list(entry.class_ids), list(entry.areas)):
            raise SampleError("its size, class ids or areas are not those of the index")
        num_classes = len(self.split.manifest.classes)
        if entry.class_ids and entry.class_ids[-1] >= num_classes:
            raise SampleError(
                f"it has class id {entry.class_ids[-1]}, the manifest names {num_classes} classes"
            )
        self.masks_checked += len(entry.class_ids)
        if self.deep:
            decode_image(record.image, entry.image_format, np.empty((entry.height, entry.width, 3), np.uint8))
        else:
            _check_image_header(record.image, entry)

    def _files_beside(self) -> Iterator[Fault]:
        """Bits of manifest and index that may change without changing a value."""
        store, expected = self.split.store, self.split.manifest.index_sha256
        try:
            if not is_as_written(store.read(MANIFEST_NAME, 0, store.size(MANIFEST_NAME))):
                yield Fault(MANIFEST_NAME, "", "it has other bytes than were written, with the same values")
            digest, size = hashlib.sha256(), store.size(INDEX_NAME)
            for offset in range(0, size if expected else 0, READ_BYTES):
                digest.update(self._read(INDEX_NAME, offset, min(READ_BYTES, size - offset)))
        except StoreError as error:
            yield Fault("", "", str(error))
            return
        if expected and digest.hexdigest() != expected:
            yield Fault(INDEX_NAME, "", f"it has sha256 {digest.hexdigest()}, the manifest says {expected}")

    def _read(self, name: str, offset: int, size: int) -> bytes:
        self.bytes_read += size
        return self.split.store.read(name, offset, size)

    def _strangers(self) -> Iterator[Fault]:
        """Tars beside those of the manifest; only a folder can be listed."""
        listed = {shard.name for shard in self.split.manifest.shards}
        found = Path(self.split.base).glob("*.tar") if isinstance(self.split.store, LocalStore) else ()
        for path in sorted(found):
            if path.name not in listed:
                yield Fault(
                    path.name, "", "the manifest does not list it, but who reads *.tar would take it in"
                )

    def _repeated(self, key_digests: list[np.ndarray]) -> Iterator[Fault]:
        """Keys that two samples share. Eight bytes a key are kept; equal ones are looked up again by name."""
        every = np.concatenate([np.empty(0, np.uint64), *key_digests])
        values, counts = np.unique(every, return_counts=True)
        suspects = set(values[counts > 1].tolist())
        if not suspects:
            return
        seen: dict[str, str] = {}
        for number, shard in enumerate(self.split.manifest.shards):
            keys = self.split.index(number).keys
            for key, digest in zip(keys, _key_digests(keys).tolist(), strict=True):
                if digest in suspects and key in seen:
                    yield Fault(shard.name, key, f"its key stands in {seen[key]} as well")
                elif digest in suspects:
                    seen[key] = shard.name


def _extent(entry: SampleEntry, start: int) -> slice:
    """Where a sample's bytes lie, from its first header to its last padding, counted from `start`."""
    stop = entry.runs_offset + entry.runs_size
    return slice(entry.image_offset - BLOCK - start, stop + -stop % BLOCK - start)


def _stretches(rows: ShardIndex) -> Iterator[tuple[int, int]]:
    """Rows [first, last) to read at once: a network pays for each question, memory for each byte."""
    first = 0
    for place in range(1, len(rows) + 1):
        last = place == len(rows)
        if (
            last
            or int(rows.runs_offset[place] + rows.runs_size[place] - rows.image_offset[first]) > READ_BYTES
        ):
            yield first, place
            first = place


def _key_digests(keys: tuple[str, ...]) -> np.ndarray:
    """(N,) uint64."""
    digests = b"".join(hashlib.blake2b(key.encode(), digest_size=8).digest() for key in keys)
    return np.frombuffer(digests, np.uint64)


def _check_image_header(image: bytes, entry: SampleEntry) -> None:
    """SampleError unless the encoded image says that it has the indexed size."""
    try:
        with Image.open(io.BytesIO(image), formats=[PILLOW_NAMES[entry.image_format]]) as picture:
            width, height = picture.size
    except (OSError, ValueError, SyntaxError, struct.error, Image.DecompressionBombError) as error:
        raise SampleError(f"its image cannot be opened: {error}") from error
    if (height, width) != (entry.height, entry.width):
        raise SampleError(f"its image is {width}x{height} px, the index says {entry.width}x{entry.height}")


def as_text(facts: dict[str, Any]) -> str:
    """For reading."""
    pages = [f"FAULT: {fault}" for fault in facts.get("root_faults", ())]
    pages += [f"note: {note}" for note in facts.get("root_notes", ())]
    for split in facts["splits"]:
        word = "ok" if split["ok"] else counted(split["num_faults"], "FAULT")
        how = "images decoded" if split["deep"] else "image headers read"
        pages.append(
            f"{split['place']}: {word}\n  {counted(split['samples_checked'], 'sample')}, "
            f"{counted(split['masks_checked'], 'mask')},"
            f" {split['bytes_read'] / 1e6:,.1f} MB read, {how}, fingerprint {split['fingerprint']}"
        )
        if not split["index_digest"]:
            pages.append("  an early version wrote it: of samples.parquet, values alone are checked")
        for fault in split["faults"]:
            place = ", ".join(part for part in (fault["shard"], fault["key"]) if part)
            pages.append(f"  {place}: {fault['what']}")
        if split["num_faults"] > len(split["faults"]):
            pages.append(f"  and {split['num_faults'] - len(split['faults'])} more")
    return "\n".join(pages)
