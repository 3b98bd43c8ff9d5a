"""`maskshards diff A B`: do two data sets hold the same, and if not, which samples differ in what?

Equal fingerprints mean equal content, and nothing more is read. Otherwise the two indexes are compared by
key: samples that only one side has, samples whose image, masks or facts differ, and whether equal samples
stand in another order. Members are compared by size and checksum as the index lists them; `verify` shows that
an index tells the truth. Memory: 16 bytes a sample of each side.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from maskshards.shards.errors import counted
from maskshards.shards.format.index import SampleEntry, ShardIndex
from maskshards.shards.format.manifest import Split, open_splits

MAX_LISTED = 50  # keys of each kind that are told by name
FIELDS = ("dataset", "split", "classes", "label_rule", "palette", "settings", "rejects", "format_version")
PARTS = {
    "image": ("image_format", "image_size", "image_crc32c"),
    "masks": ("runs_size", "runs_crc32c", "class_ids", "areas"),
    "size": ("height", "width"),
    "facts": ("json_size", "json_crc32c"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command to `parser`."""
    for name in ("a", "b"):
        parser.add_argument(name, help="a data set (OUT) or one of its splits (OUT/SPLIT); a folder or a URL")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """The comparison of every split; two single splits are compared whatever their names are."""
    left, right = open_splits(args.a), open_splits(args.b)
    if len(left) == len(right) == 1:
        pairs = [(left[0], right[0])]
        alone = []
    else:
        by_name = {split.manifest.split: split for split in right}
        pairs = [(split, by_name[split.manifest.split]) for split in left if split.manifest.split in by_name]
        paired = {split.manifest.split for split, _ in pairs}
        alone = [split.base for split in (*left, *right) if split.manifest.split not in paired]
    compared = [compare(*pair) for pair in pairs]
    return {"ok": not alone and all(c["ok"] for c in compared), "without_partner": alone, "splits": compared}


def compare(a: Split, b: Split) -> dict[str, Any]:
    """How split `b` differs from split `a`, as JSON values. `ok` says that their content is equal."""
    left, right = a.manifest, b.manifest
    same = left.fingerprint == right.fingerprint
    described = {
        name: [_plain(getattr(left, name)), _plain(getattr(right, name))]
        for name in FIELDS
        if getattr(left, name) != getattr(right, name)
    }
    facts: dict[str, Any] = {"ok": same, "places": [a.base, b.base], "described_otherwise": described}
    facts["fingerprints"] = [left.fingerprint, right.fingerprint]
    facts["samples"] = [left.num_samples, right.num_samples]
    return facts if same else {**facts, **_compare_samples(a, b)}


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def _compare_samples(a: Split, b: Split) -> dict[str, Any]:
    (keys_a, contents_a), (keys_b, contents_b) = _digests(a), _digests(b)
    common, at_a, at_b = np.intersect1d(keys_a, keys_b, return_indices=True)
    altered = set(common[contents_a[at_a] != contents_b[at_b]].tolist())
    only_a, only_b = (set(np.setdiff1d(x, y).tolist()) for x, y in ((keys_a, keys_b), (keys_b, keys_a)))
    in_common_a, in_common_b = keys_a[np.isin(keys_a, common)], keys_b[np.isin(keys_b, common)]
    entries_a, entries_b = _entries(a, altered), _entries(b, altered)
    return {
        "only_in_a": {"count": len(only_a), "keys": sorted(_entries(a, only_a))},
        "only_in_b": {"count": len(only_b), "keys": sorted(_entries(b, only_b))},
        "changed": {
            "count": len(altered),
            "keys": {
                key: _parts(entries_a[key], entries_b[key])
                for key in sorted(entries_a.keys() & entries_b.keys())
            },
        },
        "same_order": np.array_equal(in_common_a, in_common_b),
        "same_shard_sizes": np.array_equal(a.manifest.shard_samples, b.manifest.shard_samples),
    }


def _rows(split: Split) -> Iterator[tuple[ShardIndex, np.ndarray]]:
    """Each shard's rows with the (N,) uint64 digests of their keys."""
    for number in range(len(split.manifest.shards)):
        rows = split.index(number)
        yield rows, _hashed(key.encode() for key in rows.keys)


def _digests(split: Split) -> tuple[np.ndarray, np.ndarray]:
    """(N,) uint64 digests of all keys, in order, and of what each sample holds."""
    keys, contents = [np.empty(0, np.uint64)], [np.empty(0, np.uint64)]
    for rows, digests in _rows(split):
        keys.append(digests)
        names = [
            name
            for part in PARTS.values()
            for name in part
            if name not in ("class_ids", "areas", "image_format")
        ]
        table = np.stack([getattr(rows, name).astype(np.int64) for name in names], axis=1)
        contents.append(
            _hashed(
                line.tobytes() + kind.encode() for line, kind in zip(table, rows.image_format, strict=True)
            )
        )
    return np.concatenate(keys), np.concatenate(contents)


def _hashed(texts: Iterator[bytes]) -> np.ndarray:
    return np.frombuffer(b"".join(hashlib.blake2b(text, digest_size=8).digest() for text in texts), np.uint64)


def _entries(split: Split, wanted: set[int]) -> dict[str, SampleEntry]:
    """Up to MAX_LISTED samples whose key digest is wanted, the same ones on both sides."""
    wanted = set(sorted(wanted)[:MAX_LISTED])
    found: dict[str, SampleEntry] = {}
    for rows, digests in _rows(split) if wanted else ():
        for place in np.flatnonzero([digest in wanted for digest in digests.tolist()]).tolist():
            found[rows.keys[place]] = rows.entry(place)
    return found


def _parts(one: SampleEntry, two: SampleEntry) -> list[str]:
    """Which parts of a sample differ."""
    return [part for part, names in PARTS.items() if any(getattr(one, n) != getattr(two, n) for n in names)]


def as_text(facts: dict[str, Any]) -> str:
    """For reading."""
    lines = [f"{place}: the other side has no such split" for place in facts["without_partner"]]
    for split in facts["splits"]:
        left, right = split["places"]
        lines.append(f"{left} and {right}: {'the same content' if split['ok'] else 'DIFFERENT'}")
        for name in split["described_otherwise"]:
            lines.append(f"  the manifests differ in {name}{'' if split['ok'] else ' (see --json)'}")
        if split["ok"]:
            continue
        for kind, place in (("only_in_a", left), ("only_in_b", right)):
            some = ", ".join(split[kind]["keys"][:10])
            lines += (
                [f"  {counted(split[kind]['count'], 'sample')} only in {place}: {some}"]
                if split[kind]["count"]
                else []
            )
        changed = split["changed"]
        lines += (
            [f"  {counted(changed['count'], 'sample differs', 'samples differ')}:"]
            if changed["count"]
            else []
        )
        lines += [f"    {key}: {', '.join(parts)}" for key, parts in list(changed["keys"].items())[:10]]
        if not split["same_order"]:
            lines.append("  samples in both stand in another order")
        if not split["same_shard_sizes"]:
            lines.append("  samples are dealt to shards differently")
    return "\n".join(lines)
