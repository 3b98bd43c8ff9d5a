"""How long does a step wait for its data, if the step itself runs on another device?

    taskset -c 0,1 python benchmarks/wait_share.py SPLIT [--batch 16] [--step-ms 123] [--busy-ms 60]

A stand-in for a GPU step: for `busy_ms` it runs plain Python, which holds the interpreter lock as launching
kernels does, and for the rest of `step_ms` it sleeps, as a host does that waits for the matcher's copy. The
loader reads, checks and decodes meanwhile, with a thread for each processor that it may use. Prints one JSON
object; `wait_share` is the part of the time in which the step had nothing to work on.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Sequence

from maskshards.shards.loading.loader import Loader


def work(until_s: float) -> int:
    """Plain Python until the clock says so."""
    turns = 0
    while time.perf_counter() < until_s:
        turns += 1
    return turns


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("split", help="folder or URL of a split")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--step-ms", type=float, default=123.0, help="16 images at 130 a second")
    parser.add_argument("--busy-ms", type=float, default=60.0, help="of it in the interpreter")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args(argv)
    waits_ms, steps_ms = [], []
    with Loader(options.split, batch_per_rank=options.batch, seed=0, threads=options.threads) as loader:
        batches = iter(loader)
        next(batches)  # opening the split is not part of a step
        for _ in range(options.steps):
            begin = time.perf_counter()
            batch = next(batches)
            waits_ms.append(1000 * (time.perf_counter() - begin))
            since = time.perf_counter()
            work(since + options.busy_ms / 1000)
            time.sleep(max(0.0, since + options.step_ms / 1000 - time.perf_counter()))
            steps_ms.append(1000 * (time.perf_counter() - begin))
            del batch
    figures = {
        "images_per_s": 1000 * options.batch * len(steps_ms) / sum(steps_ms),
        "wait_share": sum(waits_ms) / sum(steps_ms),
        "wait_ms_median": statistics.median(waits_ms),
        "wait_ms_longest": max(waits_ms),
        "threads": options.threads,
    }
    sys.stdout.write(json.dumps(figures) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
