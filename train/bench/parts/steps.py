"""Whole steps: eager, compiled, like the reference, from shards, and the large or long ones."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from maskshards.shards.batch import RaggedBatch
from maskshards.shards.loading.device_prefetcher import DevicePrefetcher
from maskshards.shards.loading.loader import Loader
from maskshards.shards.order.order import World
from maskshards.train.bench.budgeted import NotHere
from maskshards.train.bench.hardware import peak_gib, reset_peak
from maskshards.train.bench.journal import Figures
from maskshards.train.bench.parts.made_images import write_made_split
from maskshards.train.bench.parts.operators import sorting
from maskshards.train.bench.parts.setting import PROFILE_ROWS, REFERENCE_BATCH, Setting
from maskshards.train.bench.step import BenchStep, build_bench_step
from maskshards.train.bench.variants import Variant, measured, switched, tflop_per_image
from maskshards.train.model.compile import GRAPH
from maskshards.train.optim.lr_schedule import build_schedule
from maskshards.train.optim.optimizer import set_rates
from maskshards.train.tracking.phase_timer import PhaseClock
from maskshards.train.trainer.build import open_training_split

CORES = 2  # that the loader is given in the part that reads shards
LOADER_THREADS = 2
MADE_SAMPLES = 256
RECORDED_WARMUP = 8  # made batches come in two sizes, each of which runs twice before it is recorded
CURVE_STEPS, CURVE_WINDOW = 300, 20
LEVERS = {  # off, and the gain of having it at batch 16 and width 256 (docs/benchmarks/train-gpu.md)
    "without looking ahead": (Variant(looks_ahead=False), 2.5),
    "a gradient for all masks": (Variant(switches=(("tells_product", False),)), 1.0),
}


CHOICES = {  # off until they are measured; torch's own group norm is off because it copies
    "depthwise stencil": ("stencil", True),
    "coordinates by point": ("points_first", True),
    "torch's group norm": ("keeps_layout", False),
    "costs from features": ("multiplies_out", False),
}


def eager(setting: Setting, width: int) -> Figures:
    """The step as it is without a compiler; a profile of one step goes to a file."""
    bench = setting.bench(width)
    size, batches = bench.config.bs, setting.batches(bench.config.bs)
    bench.step(batches, PhaseClock(setting.device))
    setting.tflop[width] = tflop_per_image(bench, batches, size)
    found = step_figures(setting, bench, batches, size, width)
    rows = profiled(setting, lambda: bench.step(batches, PhaseClock(setting.device)), f"profile-{width}.txt")
    return found | {"tflop_per_image": setting.tflop[width], "profile": rows}


def step_figures(
    setting: Setting, bench: BenchStep, batches: Iterator[RaggedBatch], size: int, width: int
) -> Figures:
    warmup, steps = setting.steps
    return measured(bench, batches, size, warmup=warmup, steps=steps, tflop=setting.tflop.get(width))


def profiled(setting: Setting, call: Callable[[], object], name: str) -> str:
    """The operations of one call that take longest, in a file of this name; returns the name."""
    cuda = setting.device.type == "cuda"
    with profile(
        activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])], acc_events=True
    ) as seen:
        call()
        if cuda:
            torch.cuda.synchronize(setting.device)
    key = "self_device_time_total" if cuda else "self_cpu_time_total"
    table = seen.key_averages().table(sort_by=key, row_limit=PROFILE_ROWS, max_name_column_width=70)
    (setting.out / name).write_text(table, encoding="utf-8")
    return name


def compiled(setting: Setting, width: int, what: str, mode: str = "default") -> Figures:
    """The step with `what` compiled, on the same weights."""
    if mode != "default" and setting.device.type != "cuda":
        raise NotHere("CUDA graphs need a CUDA device")
    bench = setting.bench(width)
    torch.compiler.reset()
    compiler = setting.compiler
    with switched(bench, Variant(compile=what, compile_mode=mode), compiler) as ours:
        return step_figures(setting, ours, setting.batches(bench.config.bs), bench.config.bs, width)


def recorded(setting: Setting, width: int, what: str = "none") -> Figures:
    """The step as CUDA graphs, with `what` compiled in them; without a GPU padded in the same way."""
    bench, (_, steps) = setting.bench(width), setting.steps  # what was compiled before is taken as it is
    with switched(bench, Variant(compile=what, compile_mode=GRAPH), setting.compiler) as ours:
        batches, size = setting.batches(bench.config.bs), bench.config.bs
        warmup = 0 if setting.tiny else RECORDED_WARMUP
        return measured(ours, batches, size, warmup=warmup, steps=steps, tflop=setting.tflop.get(width))


def plain_attention(setting: Setting, width: int) -> Figures:
    """What the fused kernels give: the step without them."""
    bench = setting.bench(width)
    with switched(bench, Variant(switches=(("fused", False),))) as other:
        return step_figures(setting, other, setting.batches(bench.config.bs), bench.config.bs, width)


def without(setting: Setting, width: int) -> Figures:
    """The step without one of its levers at a time, beside what a count says that the lever gains."""
    bench = setting.bench(width)
    found: Figures = {"predicted gain, ms": {name: gain for name, (_, gain) in LEVERS.items()}}
    for name, (variant, _) in LEVERS.items():
        with switched(bench, variant) as other:
            batches = setting.batches(bench.config.bs)
            found[name] = step_figures(setting, other, batches, bench.config.bs, width)
    return found


def chosen_otherwise(setting: Setting, width: int, *names: str) -> Figures:
    """The step with one kernel at a time chosen otherwise than by default; names of CHOICES."""
    bench, found = setting.bench(width), Figures()
    for name in names:
        with switched(bench, Variant(switches=(CHOICES[name],))) as other:
            batches = setting.batches(bench.config.bs)
            found[name] = step_figures(setting, other, batches, bench.config.bs, width)
    return found


def sorted_gradients(setting: Setting, width: int) -> Figures:
    """What sorting the value gradients of the deformable attention gives, for every head width."""
    bench = setting.bench(width)
    with sorting(setting, 1):
        return step_figures(setting, bench, setting.batches(bench.config.bs), bench.config.bs, width)


def reference(setting: Setting, width: int) -> Figures:
    """The step like the published code, with float32 and TF32 products, and ours at the same batch."""
    bench = setting.bench(width)
    size = bench.config.bs if setting.tiny else REFERENCE_BATCH
    found: Figures = {}
    for name, variant in (
        ("ours", Variant()),
        ("float32", Variant(reference=True)),
        ("TF32", Variant(reference=True, tf32=True)),
    ):
        with switched(bench, variant) as other:
            few = replace(other, config=replace(other.config, bs=size))
            found[name] = step_figures(setting, few, setting.batches(size), size, width)
    for name in ("float32", "TF32"):
        found[f"ours / {name}"] = found["ours"]["images_per_s"] / found[name]["images_per_s"]
    return found


def from_shards(setting: Setting) -> Figures:
    """The usual width reading shards with every thread of this process on two cores.

    The user's own shards where they are given, else made ones of the same size.
    """
    width = setting.widths[0]
    bench, root = setting.bench(width), setting.shards
    if root is None:
        folder = setting.out / "made-shards"
        shutil.rmtree(folder, ignore_errors=True)
        samples = 8 if setting.tiny else MADE_SAMPLES
        root = write_made_split(folder, samples, bench.config.decoder_head.classes)
    config = setting.config(width, f"datasets.root={root}", "datasets.train=training")
    with on_cores(CORES), open_loader(config.bs, root, setting) as loader:
        batches = iter(DevicePrefetcher(loader, setting.device))
        figures = step_figures(setting, bench, batches, config.bs, width)
    phases = figures["phases_ms"]
    return figures | {"shards": str(setting.shards or "made"), "waiting": phases["wait"] / phases["step"]}


def open_loader(size: int, root: Path, setting: Setting) -> Loader:
    config = setting.config(setting.widths[0], f"datasets.root={root}", "datasets.train=training")
    return Loader(
        open_training_split(config), batch_per_rank=size, global_batch=size, world=World(), seed=0,
        threads=LOADER_THREADS, pin=setting.device.type == "cuda",
    )  # fmt: skip


@contextmanager
def on_cores(number: int) -> Iterator[None]:
    """All threads of this process, and those that they start, on so many of its cores."""
    threads = [int(name) for name in os.listdir("/proc/self/task")]
    before = {thread: os.sched_getaffinity(thread) for thread in threads}
    few = set(sorted(os.sched_getaffinity(0))[:number])
    try:
        for thread in threads:
            os.sched_setaffinity(thread, few)
        yield
    finally:
        for thread, cores in before.items():
            try:
                os.sched_setaffinity(thread, cores)
            except ProcessLookupError:  # a thread that has ended meanwhile
                continue


def large_backbone(setting: Setting) -> Figures:
    """The largest frozen backbone with the widest head, one image a step: does it fit?"""
    setting.benches.clear()  # the others would count, and are not needed any more
    name = "dinov3_tiny16" if setting.tiny else "dinov3_vit7b16"
    config = setting.config(setting.widths[1], f"model.dino_hub={name}", "bs=1")
    reset_peak(setting.device)
    bench = build_bench_step(config, setting.device)
    built = peak_gib(setting.device)
    warmup, steps = setting.steps
    found = measured(bench, setting.batches(1), 1, warmup=min(2, warmup), steps=max(1, steps // 3))
    return found | {"backbone": name, "peak_while_building_gib": built}


def learning(setting: Setting, recorded: Path | None) -> Figures:
    """The loss of 300 steps on the shards given, beside the curve recorded on a CPU.

    The recipe is what `config=` and the other settings name; NotHere without shards.
    """
    if setting.shards is None:
        raise NotHere("no --shards to learn from")
    setting.benches.clear()
    config = setting.config(setting.widths[0], f"datasets.root={setting.shards}", "datasets.train=training")
    steps = 3 if setting.tiny else CURVE_STEPS
    bench, schedule = build_bench_step(config, setting.device), build_schedule(config.scheduler)
    losses, clock = [], PhaseClock(setting.device)
    with open_loader(config.bs, setting.shards, setting) as loader:
        batches = iter(DevicePrefetcher(loader, setting.device))
        for step in range(steps):
            set_rates(bench.optimizer, schedule, step)
            losses.append(bench.step(batches, clock))
    values = torch.stack(losses).tolist()
    window = min(CURVE_WINDOW, steps)
    found: Figures = {"steps": steps, "last": sum(values[-window:]) / window, "curve": values}
    if recorded is not None and recorded.exists():
        found["recorded_last"] = json.loads(recorded.read_text(encoding="utf-8"))["last"]["mixed"]
    return found
