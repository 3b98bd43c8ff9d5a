"""What a rank pays to find its way through 10^9 samples: one manifest or a manifest of manifests, simulated.

    OMP_NUM_THREADS=1 python benchmarks/billion_samples.py

There are no tars, and a row group of the index holds one row instead of 4,096: the cost of a manifest and of
a Parquet footer grows with shards, not with rows. Each part is measured in a fresh process, after its
imports; `grown_mb` is what the process grew by, at most. The catalogue is a list of splits with the samples
of each of their shards, which is all that the order needs; the walk counts, from the order itself, how often
a rank comes to a shard of a split that it does not hold open.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections import OrderedDict
from collections.abc import Callable
from itertools import repeat
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow.parquet  # noqa: F401  before the clock starts, as a warm program has it

from maskshards.shards.format.index import SampleEntry, ShardInfo
from maskshards.shards.format.index_parquet import IndexReader, write_index
from maskshards.shards.format.manifest import Manifest, finish_manifest, parse_manifest
from maskshards.shards.order.order import Order

NUM_SAMPLES, SHARD_SAMPLES = 10**9, 4096
NUM_RANKS, BATCH = 256, 16
NUM_SHARDS = -(-NUM_SAMPLES // SHARD_SAMPLES)
CLASSES = tuple(f"class {number}" for number in range(150))
ROW = SampleEntry(
    *("k", "jpg", 512, 683, 512, 66_000, 7, 67_072, 500, 7, 68_096, 2_700, 7),
    tuple(range(10)),
    (34_969,) * 10,
)
ROW_SHARD_BYTES = 71_168 + 1_024  # of a tar with that one sample


def shard_infos(num_shards: int, samples: int, num_bytes: int) -> tuple[ShardInfo, ...]:
    digest = "0123456789abcdef" * 4
    return tuple(
        ShardInfo(f"training-{number:06d}.tar", samples, num_bytes, digest, digest)
        for number in range(num_shards)
    )


def manifest_of(num_shards: int) -> bytes:
    shards = shard_infos(num_shards, SHARD_SAMPLES, 290_000_000)
    return finish_manifest(Manifest("made", "training", CLASSES, ()), shards).to_bytes()


def catalogue_of(split_shards: int) -> bytes:
    """Place, fingerprint and the samples of each shard, as [samples, how many shards in a row]."""
    digest = "0123456789abcdef" * 4
    whole, rest = divmod(NUM_SHARDS, split_shards)
    counts = [split_shards] * whole + [rest] * (rest > 0)
    splits = [
        {"place": f"part-{n:04d}", "fingerprint": digest, "shard_samples": [[SHARD_SAMPLES, count]]}
        for n, count in enumerate(counts)
    ]
    return json.dumps({"format": "maskshards-catalogue", "classes": CLASSES, "splits": splits}).encode()


def parse_catalogue(data: bytes) -> np.ndarray:
    runs = [run for split in json.loads(data)["splits"] for run in split["shard_samples"]]
    return np.repeat(*np.array(runs, np.int64).T)


def plan(shard_samples: np.ndarray) -> Order:
    """The order, asked for a rank's batch in the middle of the fourth epoch."""
    order = Order(shard_samples, 0, NUM_RANKS * BATCH)
    order.samples(np.arange(NUM_SAMPLES * 7 // 2, NUM_SAMPLES * 7 // 2 + BATCH))
    return order


def walk(order: Order, split_shards: int, kept: int) -> dict[str, float]:
    """How often one rank has to open a split, if it keeps those that it used last."""
    epoch, entered = order.epoch(3), []
    lane_samples = NUM_SAMPLES // order.global_batch
    for lane in range(BATCH):
        first, last = lane * lane_samples, (lane + 1) * lane_samples
        slots = np.arange(
            np.searchsorted(epoch.starts, first, side="right") - 1, np.searchsorted(epoch.starts, last)
        )
        steps = np.maximum(epoch.starts[slots] - first, 0)
        entered += zip(steps.tolist(), (epoch.shard_order[slots] // split_shards).tolist(), strict=True)
    held: OrderedDict[int, None] = OrderedDict()
    opened = 0
    for _, split in sorted(entered):
        opened += split not in held
        held[split] = None
        held.move_to_end(split)
        if len(held) > kept:
            held.popitem(last=False)
    return {"shards": len(entered), "steps": lane_samples, "splits_opened": opened}


def memory_mb(line: str) -> float:
    """VmRSS (now) or VmHWM (at most) of this process."""
    facts = dict(text.split(":") for text in Path("/proc/self/status").read_text().splitlines())
    return int(facts[line].split()[0]) * 1024 / 1e6


def measured(work: Callable[[], Any]) -> dict[str, float]:
    before, start = memory_mb("VmRSS"), time.perf_counter()
    kept = work()
    took = time.perf_counter() - start
    facts = {"s": took, "grown_mb": memory_mb("VmHWM") - before, "kept_mb": memory_mb("VmRSS") - before}
    del kept
    return facts


def one(part: str, folder: Path, split_shards: int) -> dict[str, Any]:
    """Measure one part in this process."""
    if part == "write":
        (folder / "manifest.json").write_bytes(manifest_of(split_shards))
        if split_shards < NUM_SHARDS:
            (folder / "catalogue.json").write_bytes(catalogue_of(split_shards))
            shards = shard_infos(split_shards, 1, ROW_SHARD_BYTES)
            write_index(folder / "samples.parquet", shards, repeat([ROW], split_shards))
        return {path.name: path.stat().st_size / 1e6 for path in sorted(folder.iterdir())}
    if part == "walk":
        order = plan(np.full(NUM_SHARDS, SHARD_SAMPLES))
        return {f"{kept} kept": walk(order, split_shards, kept) for kept in (1, 4, 16, 64)}
    if part == "footer":
        shards = shard_infos(split_shards, 1, ROW_SHARD_BYTES)
        return measured(lambda: IndexReader(str(folder / "samples.parquet"), shards))
    if part == "order":
        samples = np.full(NUM_SHARDS, SHARD_SAMPLES)
        return measured(lambda: plan(samples))
    data = (folder / f"{part}.json").read_bytes()
    return measured(lambda: parse_catalogue(data) if part == "catalogue" else parse_manifest(data))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--splits", type=int, nargs="*", default=[1, 64, 1024], help="default: 1 64 1024")
    words = ("PART", "FOLDER", "SHARDS")
    parser.add_argument("--one", nargs=3, metavar=words, help="what the fresh processes run")
    said = parser.parse_args()
    if said.one:
        sys.stdout.write(json.dumps(one(said.one[0], Path(said.one[1]), int(said.one[2]))))
        return
    facts: dict[str, Any] = {"shards": NUM_SHARDS}
    for num_splits in said.splits:
        split_shards = -(-NUM_SHARDS // num_splits)
        found: dict[str, Any] = {"shards of a split": split_shards}
        parts = ("catalogue", "footer", "walk") if num_splits > 1 else ("order",)
        with TemporaryDirectory() as folder:
            for part in ("write", "manifest", *parts):
                command = [sys.executable, __file__, "--one", part, folder, str(split_shards)]
                found[part] = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
        facts[f"{num_splits} splits"] = found
    sys.stdout.write(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
