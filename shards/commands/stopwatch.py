"""Time an image, of work and of streams: the CPU's, this process and its workers together, and the wall's."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import torch

Figures = dict[str, float]  # "cpu_ms", "wall_ms": milliseconds an image
Timing = Callable[[], Figures]

WARM_UP = 8  # batches; twice what any of the streams here reads ahead
TICKS = os.sysconf("SC_CLK_TCK")


def time_work(work: Callable[[], object], num_images: int) -> Figures:
    """Of `work`, which handles `num_images` images, on the device too."""
    cpu, wall = cpu_seconds(), time.perf_counter()
    work()
    return _figures(cpu, wall, num_images)


def time_stream(begin: Callable[[], Iterable[Any]], batch_size: int, num_batches: int) -> Figures:
    """Of `num_batches` batches of a stream, after WARM_UP others: starting up is not counted.

    While a first batch waits for its start-up, others are read ahead, and would be had for nothing. After
    WARM_UP batches, taken as fast as they come, as little is ahead as at the end of the measurement.
    """
    batches = iter(begin())
    try:
        begun = sum(1 for _ in islice(batches, WARM_UP))
        cpu, wall = cpu_seconds(), time.perf_counter()
        taken = sum(1 for _ in islice(batches, num_batches))
        figures = _figures(cpu, wall, max(1, batch_size * taken))
    finally:
        if isinstance(batches, Generator):
            batches.close()
    if taken < num_batches:
        raise ValueError(
            f"the stream ended after {begun + taken} batches; {num_batches} were to be timed after {WARM_UP}"
        )
    return figures


def best_of(timings: Mapping[str, Timing], rounds: int) -> dict[str, Figures]:
    """The least of `rounds` for each.

    Every round times all, so that a slow minute of the machine hits them alike.
    """
    best: dict[str, Figures] = {}
    for _ in range(rounds):
        for name, timing in timings.items():
            figures = timing()
            best[name] = {key: min(value, best.get(name, figures)[key]) for key, value in figures.items()}
    return best


def cpu_seconds() -> float:
    """CPU time so far of this process and its living workers; Linux counts the latter in ticks of 10 ms."""
    total = time.process_time()
    for child in multiprocessing.active_children():
        fields = Path(f"/proc/{child.pid}/stat").read_text().rpartition(") ")[2].split()
        total += (int(fields[11]) + int(fields[12])) / TICKS
    return total


def _figures(cpu: float, wall: float, num_images: int) -> Figures:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    cpu, wall = cpu_seconds() - cpu, time.perf_counter() - wall
    return {"cpu_ms": cpu * 1e3 / num_images, "wall_ms": wall * 1e3 / num_images}
