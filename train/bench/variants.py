"""One model measured in many ways: what can be switched is switched and put back, nothing built again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from maskshards.shards.batch import RaggedBatch
from maskshards.train.bench.hardware import count_flops, count_syncs, peak_gib, reset_peak
from maskshards.train.bench.step import BenchStep, build_loss, with_graphs
from maskshards.train.model.compile import GRAPH, compile_in_place, run_eagerly, uses_cuda_graphs
from maskshards.train.tracking.phase_timer import PhaseClock

Figures = dict[str, Any]
REFERENCE_SWITCHES = {"precision": "reference", "fused": False, "resample": False, "multiplies_out": True}


@dataclass(frozen=True)
class Variant:
    """One way of doing the step."""

    compile: str = "none"
    compile_mode: str = "default"
    reference: bool = False  # like the published code: float32 pixel decoder, plain attention, loss by layer
    looks_ahead: bool = True  # where the bench does at all
    tf32: bool = False  # float32 products on the matrix units
    switches: tuple[tuple[str, Any], ...] = ()  # attributes set on every module that has them


@contextmanager
def switched(
    bench: BenchStep, variant: Variant, compiler: dict[str, Any] | None = None
) -> Iterator[BenchStep]:
    """`bench` as `variant` wants it, for the body only; weights and moments are shared with `bench`.

    `compiler`: more options of torch.compile.
    """
    switches = dict(variant.switches) | (REFERENCE_SWITCHES if variant.reference else {})
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    kept = set_switches(bench.segmenter.decoder, switches)
    compile_in_place(bench.segmenter, variant.compile, mode=variant.compile_mode, **(compiler or {}))
    torch.set_float32_matmul_precision("high" if variant.tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = variant.tf32
    try:
        config = replace(bench.config, compile=variant.compile, compile_mode=variant.compile_mode)
        loss = build_loss(bench.config, bench.device, True) if variant.reference else bench.loss
        ahead = variant.looks_ahead and not variant.reference and not uses_cuda_graphs(variant.compile_mode)
        other = replace(bench, config=config, loss=loss, norm=None, looks_ahead=bench.looks_ahead and ahead)
        yield with_graphs(other) if variant.compile_mode == GRAPH else other
    finally:
        bench.segmenter.replayed = False
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]
        run_eagerly(bench.segmenter)
        for module, name, value in kept:
            setattr(module, name, value)


def set_switches(model: nn.Module, switches: dict[str, Any]) -> list[tuple[nn.Module, str, Any]]:
    """Set attributes on every module that has them; returns what stood there before."""
    kept = []
    for module in model.modules():
        for name, value in switches.items():
            if hasattr(module, name):
                kept.append((module, name, getattr(module, name)))
                setattr(module, name, value)
    return kept


def measured(
    bench: BenchStep,
    batches: Iterator[RaggedBatch],
    size: int,
    *,
    warmup: int,
    steps: int,
    tflop: float | None = None,
) -> Figures:
    """Images a second, medians of the phases in ms, peak memory and syncs of steps of `size` images.

    `peak_gib` is of all that this process holds; `held_gib` is what it held before the first step. `tflop` an
    image, if it was counted before.
    """
    reset_peak(bench.device)
    held = torch.cuda.memory_allocated(bench.device) / 2**30 if bench.device.type == "cuda" else None
    phases = bench.run(batches, warmup, steps)
    peak = peak_gib(bench.device)
    syncs = count_syncs(lambda: bench.step(batches, PhaseClock(bench.device)), bench.device)
    rate = 1000 * size / phases["step"]
    figures: Figures = {"images_per_s": rate, "phases_ms": phases, "peak_gib": peak, "held_gib": held}
    return figures | {"syncs": syncs, "tflop_per_s": None if tflop is None else tflop * rate}


def tflop_per_image(bench: BenchStep, batches: Iterator[RaggedBatch], size: int) -> float:
    """10^12 operations of one image's share of a step, by PyTorch's counter."""
    return count_flops(lambda: bench.step(batches, PhaseClock(bench.device))) / size / 1e12
