"""What manifest and index cost as a data set grows: a made index without tars, opened in a fresh process.

    python benchmarks/format_growth.py --out FOLDER --shards 24414 --samples-per-shard 4096

The rows are those of one made shard, again and again; sizes and times depend on how many there are, not on
what they say. The second process measures what a training run pays: open, the first and a later shard's rows,
memory.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from itertools import repeat
from pathlib import Path

import numpy as np

from maskshards.shards.format.index import SampleEntry, ShardInfo
from maskshards.shards.format.manifest import INDEX_NAME, MANIFEST_NAME, Manifest, open_split, write_split

CLASSES_PER_IMAGE = 10  # as in ADE20K


def made_rows(num_samples: int) -> tuple[list[SampleEntry], int]:
    """(rows of a shard, bytes that its tar would have)."""
    random, rows, place = np.random.default_rng(0), [], 0
    for number in range(num_samples):
        numbers: dict[str, int] = {}
        for member, size in (("image", 66_000), ("json", 500), ("runs", 2_700)):
            size = int(size * random.uniform(0.5, 1.5))
            numbers |= {f"{member}_offset": place + 512, f"{member}_size": size}
            numbers[f"{member}_crc32c"] = int(random.integers(1 << 32))
            place += 512 + -(-size // 512) * 512
        ids = np.sort(random.choice(150, CLASSES_PER_IMAGE, replace=False))
        areas = random.integers(1, 60_000, CLASSES_PER_IMAGE)
        labels = {"class_ids": tuple(ids.tolist()), "areas": tuple(areas.tolist())}
        size = {"height": 512, "width": int(random.integers(500, 800))}
        rows.append(SampleEntry(f"image_{number:012d}", "jpg", **size, **numbers, **labels))
    return rows, place + 1024


def write(out: Path, num_shards: int, samples_per_shard: int) -> None:
    rows, num_bytes = made_rows(samples_per_shard)
    names = (f"training-{number:05d}.tar" for number in range(num_shards))
    shards = tuple(ShardInfo(name, samples_per_shard, num_bytes, "0" * 64) for name in names)
    manifest = Manifest("made", "training", tuple(map(str, range(150))), shards)
    write_split(out, manifest, repeat(rows, num_shards))


def read(out: Path) -> dict[str, float]:
    import pyarrow.parquet  # noqa: F401  loaded before the clock starts, as a warm program has it

    before = resident_mb()
    times = [time.perf_counter()]
    split = open_split(out)
    times.append(time.perf_counter())
    last = len(split.manifest.shards) - 1
    for number in (0, last, last // 2):
        rows = split.index(number)
        times.append(time.perf_counter())
    open_s, first_s, _, later_s = np.diff(times)
    return {
        "open_ms": round(1e3 * open_s, 1),
        "first_shard_ms": round(1e3 * first_s, 1),
        "later_shard_ms": round(1e3 * later_s, 2),
        "rows_of_a_shard": len(rows),
        "memory_mb": round(resident_mb() - before, 1),
    }


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--shards", type=int, default=196)
    parser.add_argument("--samples-per-shard", type=int, default=256)
    parser.add_argument("--read", action="store_true", help="only measure reading what is there")
    args = parser.parse_args()
    if args.read:
        sys.stdout.write(json.dumps(read(args.out)) + "\n")
        return
    args.out.mkdir(parents=True)
    start = time.perf_counter()
    write(args.out, args.shards, args.samples_per_shard)
    facts = {
        "samples": args.shards * args.samples_per_shard,
        "shards": args.shards,
        "write_s": round(time.perf_counter() - start, 1),
        "manifest_mb": round(os.path.getsize(args.out / MANIFEST_NAME) / 1e6, 2),
        "index_mb": round(os.path.getsize(args.out / INDEX_NAME) / 1e6, 2),
        "writer_peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3),
    }
    again = [sys.executable, __file__, "--out", str(args.out), "--read"]
    facts |= json.loads(subprocess.run(again, capture_output=True, check=True, text=True).stdout)
    sys.stdout.write(json.dumps(facts) + "\n")


if __name__ == "__main__":
    main()
