"""How soon a loader starts, resumes and what it keeps, on a made set of 100,000 small samples.

    OMP_NUM_THREADS=1 python benchmarks/loader_start.py FOLDER

builds the set in FOLDER unless it is there, and prints JSON. Each start is a fresh process, imports not
counted, and the median of five is told. `--one KIND` is what those processes run, on any split; `memory`
tells how much a rank with batches of 16 grows by.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

from maskshards.shards.format.index import ShardInfo
from maskshards.shards.format.manifest import Manifest, open_split, write_split
from maskshards.shards.format.record import Record
from maskshards.shards.format.rle import encode_label_map
from maskshards.shards.format.tar import TarWriter
from maskshards.shards.loading.loader import Loader
from maskshards.shards.order.order import Order

NUM_SAMPLES, SAMPLES_PER_SHARD, BATCH = 100_000, 256, 16


def build(folder: Path) -> None:
    """Samples of 32 x 24 pixels: what is timed is finding them."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    buffer = io.BytesIO()
    Image.fromarray(random.integers(0, 256, (24, 32, 3), np.uint8)).save(buffer, "JPEG")
    runs = encode_label_map(np.repeat(random.integers(0, 150, (24, 8)), 4, axis=1).astype(np.uint16))
    infos, entries = [], []
    for shard, first in enumerate(range(0, NUM_SAMPLES, SAMPLES_PER_SHARD)):
        numbers = range(first, min(first + SAMPLES_PER_SHARD, NUM_SAMPLES))
        path = folder / f"training-{shard:05d}.tar"
        with TarWriter(path) as writer:
            records = (
                Record(f"s{number:06d}", buffer.getvalue(), "jpg", 24, 32, runs, {}) for number in numbers
            )
            entries.append([writer.add(record) for record in records])
        infos.append(ShardInfo(path.name, len(numbers), writer.num_bytes, writer.sha256))
    classes = tuple(f"class {number}" for number in range(150))
    write_split(folder, Manifest("made", "training", classes, tuple(infos)), entries)


def one(folder: Path, kind: str) -> dict[str, float]:
    """Seconds to open the split and to the first batch; peak memory of the process."""
    before = memory_mib("VmRSS")
    start = time.perf_counter()
    split = open_split(folder)
    opened = time.perf_counter() - start
    position = 0 if kind == "start" else split.manifest.num_samples * 7 // 2 // BATCH * BATCH
    with Loader(split, batch_per_rank=BATCH, position=position) as loader:
        batches = iter(loader)
        next(batches)
        first = time.perf_counter() - start
        for _ in range(0 if kind != "memory" else 500):
            next(batches)
    return {"open_s": opened, "first_batch_s": first, "grown_mib": memory_mib("VmHWM") - before}


def memory_mib(line: str) -> float:
    """VmRSS (now) or VmHWM (at most) of this process."""
    facts = dict(text.split(":") for text in Path("/proc/self/status").read_text().splitlines())
    return int(facts[line].split()[0]) / 1024


def plan_of(num_samples: int) -> dict[str, float]:
    """Seconds for one rank's batch in the middle of an epoch, and the bytes that the plan keeps."""
    start = time.perf_counter()
    order = Order(np.full(num_samples // 256, 256), 0, 4096)
    order.samples(np.arange(num_samples // 2, num_samples // 2 + BATCH))
    seconds = time.perf_counter() - start
    epoch = order.epoch(0)
    return {"seconds": seconds, "kept_mb": (epoch.starts.nbytes + epoch.shard_order.nbytes) / 1e6}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--one", choices=["start", "resume", "memory"])
    args = parser.parse_args()
    if args.one:
        sys.stdout.write(json.dumps(one(args.folder, args.one)))
        return
    if not (args.folder / "manifest.json").exists():
        build(args.folder)
    results: dict[str, object] = {}
    for kind in ("start", "resume", "memory"):
        command = [sys.executable, __file__, str(args.folder), "--one", kind]
        runs = [json.loads(subprocess.run(command, capture_output=True, check=True).stdout) for _ in range(5)]
        results[kind] = {name: sorted(run[name] for run in runs)[2] for name in runs[0]}
    results["plan of 1e8 samples"] = plan_of(100_000_000)
    sys.stdout.write(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
