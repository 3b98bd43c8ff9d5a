"""`maskshards info`: what a data set holds, from manifest and index alone; no image or mask is read.

The index is walked one shard at a time, so memory does not grow with the data set.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np

from maskshards.shards.errors import counted
from maskshards.shards.format.manifest import Split, open_splits

SIDE_BOUNDS = (0, 128, 256, 384, 512, 640, 768, 1024, 1536, 2048, 4096)  # px, of the histogram of short sides
SHOWN_CLASSES = 20
BAR = 30  # characters


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command to `parser`."""
    parser.add_argument("url", help="a data set (OUT) or one of its splits (OUT/SPLIT); a folder or a URL")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Facts of every split."""
    return {"splits": [survey(split) for split in open_splits(args.url)]}


def survey(split: Split) -> dict[str, Any]:
    """What is in a split, as JSON values. ManifestError where its index is wrong."""
    manifest = split.manifest
    num_classes = len(manifest.classes)
    pixels_of, images_of = np.zeros((2, num_classes), np.int64)
    sides = np.zeros(len(SIDE_BOUNDS), np.int64)
    classes_per_image = np.zeros(num_classes + 1, np.int64)
    member_bytes = dict.fromkeys(("image", "json", "runs"), 0)
    formats: dict[str, int] = {}
    pixels, smallest, largest = 0, [0, 0], [0, 0]
    for number in range(len(manifest.shards)):
        rows = split.index(number)
        if not len(rows):
            continue
        areas = rows.height.astype(np.int64) * rows.width
        pixels_of += _count(rows.flat_class_ids, num_classes, rows.flat_areas)
        images_of += _count(rows.flat_class_ids, num_classes)
        short = np.minimum(rows.height, rows.width)
        sides += np.bincount(np.searchsorted(SIDE_BOUNDS, short, "right") - 1, minlength=len(SIDE_BOUNDS))
        classes_per_image += np.bincount(np.diff(rows.label_offsets), minlength=num_classes + 1)
        for name in member_bytes:
            member_bytes[name] += int(getattr(rows, f"{name}_size").sum(dtype=np.int64))
        for name in rows.image_format:
            formats[name] = formats.get(name, 0) + 1
        least, most = int(np.argmin(areas)), int(np.argmax(areas))
        if not pixels or areas[least] < smallest[0] * smallest[1]:
            smallest = [int(rows.height[least]), int(rows.width[least])]
        if areas[most] > largest[0] * largest[1]:
            largest = [int(rows.height[most]), int(rows.width[most])]
        pixels += int(areas.sum())
    return {
        "place": split.base,
        "dataset": manifest.dataset,
        "split": manifest.split,
        "fingerprint": manifest.fingerprint,
        "format_version": manifest.format_version,
        "samples": manifest.num_samples,
        "shards": len(manifest.shards),
        "bytes": sum(shard.bytes for shard in manifest.shards),
        "member_bytes": member_bytes,
        "image_formats": formats,
        "label_rule": manifest.label_rule,
        "rejects": len(manifest.rejects),
        "pixels": pixels,
        "masks": int(images_of.sum()),
        "void_share": 1 - float(pixels_of.sum()) / pixels if pixels else 0.0,
        "smallest": smallest,
        "largest": largest,
        "short_sides": {
            f"{low}+": int(count) for low, count in zip(SIDE_BOUNDS, sides, strict=True) if count
        },
        "classes_per_image": {str(n): int(count) for n, count in enumerate(classes_per_image) if count},
        "classes": [
            {"id": i, "name": name, "pixels": int(pixels_of[i]), "images": int(images_of[i])}
            for i, name in enumerate(manifest.classes)
        ],
    }


def _count(class_ids: np.ndarray, num_classes: int, weights: np.ndarray | None = None) -> np.ndarray:
    """(num_classes,) int64 sums; float64 sums of pixels are exact up to 2**53."""
    if len(class_ids) and class_ids.max() >= num_classes:
        raise ValueError(
            f"the index names class {class_ids.max()}, the manifest has {counted(num_classes, 'class')}"
        )
    return np.bincount(class_ids, weights, num_classes).astype(np.int64)


def as_text(facts: dict[str, Any]) -> str:
    """For reading."""
    return "\n\n".join(_page(split) for split in facts["splits"])


def _page(split: dict[str, Any]) -> str:
    members = ", ".join(f"{name} {_mega(size)}" for name, size in split["member_bytes"].items())
    formats = ", ".join(f"{count} {name}" for name, count in sorted(split["image_formats"].items()))
    small, large = ("x".join(map(str, reversed(split[name]))) for name in ("smallest", "largest"))
    each = split["masks"] / split["samples"] if split["samples"] else 0.0
    lines = [
        f"{split['dataset']} {split['split']}   {split['place']}",
        f"  fingerprint  {split['fingerprint']}",
        f"  samples      {split['samples']} in {counted(split['shards'], 'shard')}, {_mega(split['bytes'])}"
        f" ({members})",
        f"  images       {formats or 'none'}, {small} to {large} px",
        f"  masks        {split['masks']}, {each:.1f} an image; {split['void_share']:.2%} of pixels in none",
        f"  label rule   {', '.join(f'{k}={v}' for k, v in split['label_rule'].items()) or 'none'}",
    ]
    if split["rejects"]:
        lines.append(f"  left out     {counted(split['rejects'], 'input')}, listed in the manifest")
    most = max(split["short_sides"].values(), default=1)
    lines.append("  short side, px")
    lines += [f"    {low:>6} {_bar(count, most)} {count}" for low, count in split["short_sides"].items()]
    present = sorted(split["classes"], key=lambda entry: -entry["pixels"])
    labelled = max(1, sum(entry["pixels"] for entry in present))
    lines.append("  class                          share of labelled pixels          images")
    for entry in present[:SHOWN_CLASSES]:
        share = entry["pixels"] / labelled
        bar = _bar(entry["pixels"], present[0]["pixels"])
        lines.append(f"    {entry['id']:>4} {entry['name'][:22]:22} {share:>7.2%} {bar} {entry['images']}")
    if len(present) > SHOWN_CLASSES:
        lines.append(f"    and {len(present) - SHOWN_CLASSES} more, all with --json")
    absent = [entry["name"] for entry in present if not entry["images"]]
    if absent:
        some = ", ".join(absent[:5]) + (", ..." if len(absent) > 5 else "")
        lines.append(f"  {counted(len(absent), 'class has', 'classes have')} no pixel: {some}")
    return "\n".join(lines)


def _bar(count: int, most: int) -> str:
    return ("#" * round(BAR * count / max(1, most))).ljust(BAR)


def _mega(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
