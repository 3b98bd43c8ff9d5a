"""Where a step's time goes.

`maskshards bench step [config=FILE] [key=value ...] [--compare reference] [--json]` takes real steps of the
trainer's own pieces on made-up batches, or on shards where datasets.root is given: medians of each phase,
images a second, TFLOP/s against this machine's own matmul rate, peak memory, syncs, and a validation's share
of a whole run. `--only memory` counts what a step holds, on any machine. `--only loss` measures the matched
loss alone, paired with the reference's, on random predictions.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from maskshards.shards.batch import RaggedBatch
from maskshards.shards.loading.loader import Loader
from maskshards.shards.order.order import World
from maskshards.train.bench.activation_memory import count_memory
from maskshards.train.bench.hardware import count_flops, count_syncs, matmul_tflops, peak_gib, reset_peak
from maskshards.train.bench.paired import attention_ms, loss_ms
from maskshards.train.bench.step import BenchStep, build_bench_step
from maskshards.train.bench.synthetic import synthetic_batch, synthetic_batches
from maskshards.train.config.load import load_config, read_recipe, split_arguments
from maskshards.train.config.schema import TrainConfig
from maskshards.train.evaluation.evaluate import evaluation_settings
from maskshards.train.evaluation.inference import label_maps
from maskshards.train.model.cpu_memory import keep_freed_memory
from maskshards.train.model.heads.mask2former import Mask2Former
from maskshards.train.model.heads.registry import head_called
from maskshards.train.tracking.phase_timer import HOST_PHASE, PhaseClock
from maskshards.train.trainer.build import autocast_dtype, open_training_split

RECIPE = Path(__file__).parents[2] / "configs" / "config-ade20k-m2f-training.yaml"
SYNTHETIC = "synthetic"  # datasets.root where none is given
VALIDATION_IMAGES = 2000  # ADE20K's, for a validation's share of a run


@dataclass(frozen=True)
class StepFigures:
    """One way of doing the step, measured. Times are medians in milliseconds."""

    name: str
    images_per_s: float
    phases_ms: dict[str, float]
    tflop_per_image: float | None
    tflop_per_s: float | None
    peak_gib: float | None
    syncs: int | None  # None where there is no device to wait for


@dataclass
class Report:
    """All figures of one run, as `--json` prints them."""

    device: str
    torch: str
    settings: dict[str, object]
    matmul_tflop_per_s: float | None = None
    steps: list[StepFigures] = field(default_factory=list)
    loss_ms: dict[str, float] = field(default_factory=dict)
    attention_ms: dict[str, float] = field(default_factory=dict)
    memory_gib: dict[str, float] = field(default_factory=dict)  # counted, not measured
    validation: dict[str, float] = field(default_factory=dict)


def main(argv: Sequence[str]) -> int:
    """Run the command; 2 for a fault of the user's, told on stderr."""
    try:
        options, settings = parse(argv)
        report = bench(load_config(settings), options)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    sys.stdout.write(json.dumps(asdict(report), indent=2) + "\n" if options.json else to_text(report))
    return 0


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Options, and the key=value settings with this command's own defaults before them.

    A backbone or weights that the recipe names stand. ConfigError for a recipe that cannot be read.
    """
    parser = argparse.ArgumentParser(
        prog="maskshards bench step",
        description=__doc__,
        epilog="example: maskshards bench step --only step --compare reference bs=8",
    )
    parser.add_argument(
        "--compare", choices=["reference"], help="also measure a step put together like the reference"
    )
    parser.add_argument(
        "--only", choices=["step", "loss", "attention", "validation", "memory"], help="one thing"
    )
    parser.add_argument("--steps", type=int, default=20, help="measured steps")
    parser.add_argument("--warmup", type=int, default=5, help="steps before them")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options, settings = parser.parse_known_args(argv)
    given = {setting.split("=", 1)[0] for setting in settings}
    recipe = split_arguments(settings)[1] or RECIPE
    named = {key for key, value in (read_recipe(recipe).get("model") or {}).items() if value is not None}
    given |= {f"model.{key}" for key in named}
    if "model.pretrained_weights" in given:  # another word for the same thing
        given.add("model.weights")
    defaults = {
        "config": str(RECIPE),
        "datasets.root": SYNTHETIC,
        "model.dino_hub": "dinov3_vitl16",
        "model.weights": "random",
        "output_dir": "unused",  # a recipe must name one; nothing is written here
    }
    return options, [*(f"{key}={value}" for key, value in defaults.items() if key not in given), *settings]


def bench(config: TrainConfig, options: argparse.Namespace) -> Report:
    """Measure what `options` ask for."""
    if options.steps < 1 or options.warmup < 0:
        raise ValueError(
            f"--steps {options.steps} --warmup {options.warmup}: expected at least 1 and at least 0"
        )
    device = chosen_device(options.device)
    if device.type == "cpu":
        keep_freed_memory()  # as training does
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    model = {"hub": config.model.dino_hub, "hidden_dim": config.decoder_head.hidden_dim, "bs": config.bs}
    report = Report(name, torch.__version__, {**model, "input": config.datasets.root})
    if options.only in (None, "step"):
        measure_steps(config, options, device, report)
    if isinstance(head_called(config.decoder_head.type), Mask2Former) and (
        options.only == "loss" or (options.only is None and options.compare)
    ):
        report.loss_ms = loss_ms(config, device, options.warmup, options.steps)
    if options.only == "attention":
        report.attention_ms = attention_ms(config, device, options.warmup, options.steps)
    if options.only == "memory":
        count = count_memory(config)
        report.memory_gib = {**asdict(count), "total_gib": count.total_gib}
    if options.only in (None, "validation"):
        step_ms = report.steps[0].phases_ms["step"] if report.steps else None
        report.validation = measure_validation(config, device, step_ms)
    return report


def chosen_device(name: str) -> torch.device:
    """`cpu`, `cuda` or `cuda:N`; ValueError for anything else and for a GPU that is not there."""
    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda") or (number and not number.isdigit()):
        raise ValueError(f"--device {name}: expected cpu, cuda or cuda:N")
    if kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"--device {name}: this machine has {torch.cuda.device_count()} CUDA devices; say cpu"
        )
    device = torch.device(name)
    if device.type == "cuda":
        torch.cuda.set_device(device)  # kernels and events of our own go to the current device
    return device


def measure_steps(
    config: TrainConfig, options: argparse.Namespace, device: torch.device, report: Report
) -> None:
    """Add our step's figures to `report` and, if asked, the reference's, in float32 and with TF32."""
    dtype = autocast_dtype(config, device) or torch.float32
    report.matmul_tflop_per_s = matmul_tflops(device, dtype, 8192 if device.type == "cuda" else 512)
    variants = [("ours", False, False)]
    if options.compare:
        variants.append(("reference", True, False))
        if device.type == "cuda":
            variants.append(("reference, TF32", True, True))
    for name, reference, tf32 in variants:
        before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        torch.backends.cudnn.allow_tf32 = tf32
        try:
            report.steps.append(measure_step(name, config, options, device, reference))
        finally:
            torch.set_float32_matmul_precision(before[0])
            torch.backends.cudnn.allow_tf32 = before[1]


def measure_step(
    name: str, config: TrainConfig, options: argparse.Namespace, device: torch.device, reference: bool
) -> StepFigures:
    reset_peak(device)
    bench = build_bench_step(config, device, reference=reference)
    with_input = open_input(config, device)
    phases = bench.run(with_input, options.warmup, options.steps)
    peak = peak_gib(device)
    flops = count_flops(lambda: one_step(bench, with_input)) / config.bs / 1e12
    syncs = count_syncs(lambda: one_step(bench, with_input), device)
    rate = 1000 * config.bs / phases["step"]
    return StepFigures(name, rate, phases, flops, flops * rate, peak, syncs)


def one_step(bench: BenchStep, batches: Iterator[RaggedBatch]) -> None:
    bench.step(batches, PhaseClock(bench.device))


def open_input(config: TrainConfig, device: torch.device) -> Iterator[RaggedBatch]:
    """Batches without end: from shards where datasets.root names some, else made up."""
    pin = device.type == "cuda"
    if config.datasets.root == SYNTHETIC:
        return synthetic_batches(config.bs, config.decoder_head.classes, pin)
    split = open_training_split(config)
    return iter(
        Loader(
            split, batch_per_rank=config.bs, global_batch=config.bs, world=World(), seed=config.seed,
            threads=config.num_workers, pin=pin,
        )
    )  # fmt: skip


def measure_validation(config: TrainConfig, device: torch.device, step_ms: float | None) -> dict[str, float]:
    """Images a second of sliding evaluation, and the share of a whole run that its validations take."""
    bench = build_bench_step(config, device)
    bench.segmenter.eval()
    batch = synthetic_batch(4, config.decoder_head.classes).to(device)
    images = list(batch.pixels.view(4, batch.heights[0], batch.widths[0], 3))
    settings = evaluation_settings(config).inference
    label_maps(bench.segmenter, images[:1], settings, bench.autocast)[0].cpu()
    since = time.perf_counter()
    for image in images:
        label_maps(bench.segmenter, [image], settings, bench.autocast)[0].cpu()
    rate = len(images) / (time.perf_counter() - since)
    figures = {"images_per_s": rate}
    if step_ms is not None:
        count = config.eval.max_val_samples or VALIDATION_IMAGES
        validations = config.scheduler.total_iter // config.eval.eval_interval
        spent_s, training_s = validations * count / rate, config.scheduler.total_iter * step_ms / 1000
        figures["share_of_run"] = spent_s / (spent_s + training_s)
    return figures


def to_text(report: Report) -> str:
    """The report as a table for people."""
    lines = [
        f"{report.device}, torch {report.torch}: " + ", ".join(f"{k} {v}" for k, v in report.settings.items())
    ]
    for step in report.steps:
        phases = "  ".join(f"{name} {value:.1f}" for name, value in step.phases_ms.items())
        waiting = step.phases_ms.get(HOST_PHASE, 0.0) / step.phases_ms["step"]
        lines += [
            f"{step.name}: {step.images_per_s:.2f} images/s, {waiting:.1%} of a step waiting for data",
            f"  ms: {phases}",
        ]
        if step.tflop_per_image is not None and step.tflop_per_s is not None and report.matmul_tflop_per_s:
            share = step.tflop_per_s / report.matmul_tflop_per_s
            lines.append(
                f"  {step.tflop_per_image:.4f} TFLOP an image, {step.tflop_per_s:.3f} TFLOP/s: "
                f"{share:.0%} of this machine's matmul rate ({report.matmul_tflop_per_s:.3f})"
            )
        if step.peak_gib is not None:
            lines.append(
                f"  peak memory {step.peak_gib:.1f} GiB, {step.syncs} syncs a step that PyTorch sees "
                "(waiting for an event, as our matcher does once, is none of them)"
            )
    for other in report.steps[1:]:
        lines.append(f"ours / {other.name}: {report.steps[0].images_per_s / other.images_per_s:.2f}x")
    lines += [f"loss, {name}: {value:.2f}" for name, value in report.loss_ms.items()]
    lines += [f"deformable attention, {name}: {value:.2f}" for name, value in report.attention_ms.items()]
    lines += [f"counted memory, {name}: {value:.2f}" for name, value in report.memory_gib.items()]
    lines += [f"validation, {name}: {value:.4g}" for name, value in report.validation.items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
