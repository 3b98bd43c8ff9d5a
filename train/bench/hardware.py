"""What a measured step is held against: its FLOPs, the machine's matmul rate, memory and syncs."""

from __future__ import annotations

import gc
import statistics
import time
import warnings
from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

WARM_UP = 3  # calls before those that are timed
SYNC_WARNING = "called a synchronizing CUDA operation"


def count_flops(call: Callable[[], object]) -> int:
    """Floating-point operations of matmuls, convolutions and attention in `call`, backward passes included.

    Gathers are not counted, so neither is the sampling inside deformable attention. Compiled modules run
    eagerly in here: a compiled program does its products unseen.
    """
    with torch.compiler.set_stance("force_eager"), FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())


def matmul_tflops(device: torch.device, dtype: torch.dtype, side: int, repeats: int = 20) -> float:
    """10^12 operations a second of square `side` x `side` products, the best of three rounds.

    The entries are random: on constant ones fewer wires switch, so a GPU may clock higher than work can.
    """
    generator = torch.Generator(device).manual_seed(0)
    a = torch.randn((side, side), generator=generator, device=device, dtype=dtype)
    best_s = float("inf")
    for _ in range(4):  # the first round warms up; `min` forgets it
        begin = _settled(device)
        for _ in range(repeats):
            a.mm(a)
        best_s = min(best_s, _settled(device) - begin)
    return 2 * side**3 * repeats / best_s / 1e12


def copy_gb_per_s(device: torch.device, num_bytes: int, repeats: int) -> float:
    """10^9 bytes a second of copying within device memory; reads and writes both count."""
    source = torch.randint(0, 256, (num_bytes,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * num_bytes / median_ms(lambda: target.copy_(source), device, repeats) / 1e6


def median_ms(call: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Median milliseconds of `call` after WARM_UP calls: by CUDA events, by the clock elsewhere."""
    for _ in range(WARM_UP):
        call()
    if device.type != "cuda":
        return statistics.median(1000 * _clocked_s(call) for _ in range(repeats))
    marks = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
    for begin, end in marks:
        begin.record()
        call()
        end.record()
    torch.cuda.synchronize(device)
    return float(statistics.median(begin.elapsed_time(end) for begin, end in marks))


def _clocked_s(call: Callable[[], object]) -> float:
    since = time.perf_counter()
    call()
    return time.perf_counter() - since


def count_syncs(call: Callable[[], object], device: torch.device) -> int | None:
    """How often the host waits for the device in `call`, as PyTorch's sync debug mode sees it; None off CUDA.

    Waiting for an event, as the matcher's one copy does, is not seen by it.
    """
    if device.type != "cuda":
        return None
    before = torch.cuda.get_sync_debug_mode()
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")  # warns itself, once, that it is a prototype
            call()
    finally:
        torch.cuda.set_sync_debug_mode(before)
    return sum(SYNC_WARNING in str(warning.message) for warning in caught)


def reset_peak(device: torch.device) -> None:
    """Forget the peak so far and give cached memory back, so that the next peak is its own."""
    gc.collect()  # a model in a cycle would count as held by the next one
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peak_gib(device: torch.device) -> float | None:
    """Most device memory that tensors held since `reset_peak`, GiB; None off CUDA."""
    return torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None


def _settled(device: torch.device) -> float:
    """Seconds on the clock, once the device has nothing left to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
