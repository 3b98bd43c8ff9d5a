"""How much a busy Python thread is slowed by the loader's threads through the interpreter lock alone.

The busy thread stands for a training loop that launches kernels. It runs in turns beside the loader at a
fixed rate of images, and beside a load that is pure C, never takes the lock for long, and uses the same CPU
time; the ratio of what the busy thread gets done in neighbouring turns leaves out everything but the lock.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from statistics import median

from maskshards.shards.batch import RaggedBatch

BLOCK = bytes(1 << 20)  # hashed outside the lock, half a millisecond and more


def interference(
    batches: Iterator[RaggedBatch], *, turns: int, turn_seconds: float = 1.0, images_per_second: float = 100.0
) -> dict[str, float]:
    """`slowed_by`: the median share of its speed, over `turns` pairs, that the busy thread loses to the lock.

    `batches` are taken at `images_per_second`; `loader_cpu` is the CPU time that this takes, in seconds a
    second.
    """
    batch = next(batches)  # starting up is not part of it
    pause = len(batch) / images_per_second
    blocks_per_second = _blocks_per_second()
    ratios, loads = [], []
    for _ in range(turns):
        with _repeating(partial(next, batches), pause):
            beside_loader, cpu = _busy(turn_seconds)
        loads.append(cpu)
        blocks = max(1, round(cpu * pause * blocks_per_second))
        with _repeating(partial(_hash, blocks), pause):
            beside_c, _ = _busy(turn_seconds)
        ratios.append(beside_loader / beside_c)
    return {
        "slowed_by": 1 - median(ratios),
        "loader_cpu": median(loads),
        "images_per_second": images_per_second,
    }


def _busy(seconds: float) -> tuple[float, float]:
    """(rounds of plain Python a second of this thread's wall time, CPU of all other threads a second)."""
    rounds, total = 0, 0
    all_cpu, own_cpu, began = time.process_time(), time.thread_time(), time.perf_counter()
    while (passed := time.perf_counter() - began) < seconds:
        for i in range(1000):
            total += i * i & 7
        rounds += 1
    others = (time.process_time() - all_cpu) - (time.thread_time() - own_cpu)
    return rounds / passed, max(0.0, others) / passed


def _hash(blocks: int) -> None:
    digest = hashlib.sha256()
    for _ in range(blocks):
        digest.update(BLOCK)


def _blocks_per_second() -> float:
    began = time.thread_time()
    _hash(32)
    return 32 / (time.thread_time() - began)


@contextmanager
def _repeating(work: Callable[[], object], pause: float) -> Iterator[None]:
    """`work` once every `pause` seconds in a thread of its own; an error of it is raised at the end."""
    stop = threading.Event()

    def repeat() -> None:
        due = time.perf_counter()
        while not stop.is_set():
            work()
            due += pause
            stop.wait(max(0.0, due - time.perf_counter()))

    with ThreadPoolExecutor(1, thread_name_prefix="maskshards-load") as executor:
        running = executor.submit(repeat)
        try:
            yield
        finally:
            stop.set()
    running.result()
