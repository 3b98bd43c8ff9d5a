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

TICKS = os.sysconf("SC_CLK_TCK")


def time_work(work: Callable[[], object], num_images: int) -> Figures:
    """Of `work`, which handles `num_images` images, on the device too."""
    cpu, wall = cpu_seconds(), time.perf_counter()
    work()
    return _figures(cpu, wall, num_images)


def time_stream(begin: Callable[[], Iterable[Any]], batch_size: int, num_batches: int) -> Figures:
    """Of `num_batches` batches of a stream, after a first one: starting up is not counted.

    What had been read ahead by then is not counted either, nor is what was by the end; they are alike.
    """
    batches = iter(begin())
    try:
        next(batches)
        cpu, wall = cpu_seconds(), time.perf_counter()
        taken = sum(1 for _ in islice(batches, num_batches))
        figures = _figures(cpu, wall, batch_size * taken)
    finally:
        if isinstance(batches, Generator):
            batches.close()
    if taken < num_batches:
        raise ValueError(f"the stream ended after {taken + 1} batches; {num_batches + 1} were to be timed")
    return figures


def best_of(timings: Mapping[str, Timing], rounds: int) -> dict[str, Figures]:
    """The least of `rounds` for each. Every round times all, so that a slow minute of the machine hits them
    alike.
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
