"""Does a bfloat16 pixel decoder hurt? Outputs and gradients against float32, and loss curves and scores
over seeds.

python benchmarks/precision.py config=configs/camvid-dinov2s-m2f.yaml datasets.root=data/camvid-shards
model.weights=DINOV2_VITS14_FOLDER [--steps 300] [--seeds 3] [key=value ...]

Prints the comparison and writes precision.json and precision.svg beside this file; with --seeds 0 it only
prints. Both kinds run under bfloat16 autocast with
the same data, crops, points and initial weights; "reference" computes the pixel decoder in float32,
"mixed" does not.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from maskshards.shards.augment.crop import crop, draw_crops
from maskshards.train.bench.command import SYNTHETIC, open_input, parse
from maskshards.train.bench.parts.parity import answers, relative
from maskshards.train.bench.step import BenchStep, build_bench_step
from maskshards.train.config.load import load_config
from maskshards.train.config.schema import TrainConfig
from maskshards.train.evaluation.evaluate import evaluate, evaluation_settings
from maskshards.train.optim.lr_schedule import build_schedule
from maskshards.train.optim.optimizer import set_rates
from maskshards.train.tracking.phase_timer import PhaseClock
from maskshards.train.trainer.build import crop_settings, open_validation_split

HERE = Path(__file__).parent
COLOURS = {"mixed": "#c0392b", "reference": "#2c3e50"}
WINDOW = 20  # steps that one point of a curve averages


def bench_step_of(config: TrainConfig, device: torch.device, precision: str) -> BenchStep:
    """The head in `float32`, or under bfloat16 autocast with the pixel decoder in it (`mixed`) or not
    (`reference`). The frozen features are the same for all three.
    """
    bench = build_bench_step(config, device)
    for module in bench.segmenter.decoder.modules():
        if hasattr(module, "precision"):
            module.precision = "reference" if precision == "reference" else "mixed"
    return replace(bench, autocast=None if precision == "float32" else torch.bfloat16)


def compare(config: TrainConfig, device: torch.device) -> dict[str, dict[str, float]]:
    """Relative error of outputs and cosine of gradients of both kinds against float32 everywhere."""
    settings = crop_settings(config)
    batch = next(open_input(config, device)).to(device)
    crops = crop(batch, draw_crops(batch, config.seed, settings), settings)
    exact = answers(bench_step_of(config, device, "float32"), crops)
    table = {}
    for kind in COLOURS:
        ours = answers(bench_step_of(config, device, kind), crops)
        table[kind] = {
            "class logits, relative error": relative(ours.class_logits, exact.class_logits),
            "mask logits, relative error": relative(ours.mask_logits, exact.mask_logits),
        } | {
            f"gradient cosine, {name}": float(torch.cosine_similarity(mine.double(), wanted.double(), dim=0))
            for (name, wanted), mine in zip(exact.gradients.items(), ours.gradients.values(), strict=True)
        }
    return table


def run(config: TrainConfig, device: torch.device, kind: str, steps: int) -> tuple[list[float], float | None]:
    """The loss of every step of a short run, and the mIoU of its last weights where there are shards."""
    bench = bench_step_of(config, device, kind)
    schedule = build_schedule(config.scheduler)
    batches, clock, losses = open_input(config, device), PhaseClock(device), []
    for step in range(steps):
        set_rates(bench.optimizer, schedule, step)
        losses.append(bench.step(batches, clock))
    score = None if config.datasets.root == SYNTHETIC else miou(bench)
    return torch.stack(losses).tolist(), score


def miou(bench: BenchStep) -> float:
    settings = evaluation_settings(bench.config)
    split = open_validation_split(bench.config)
    result = evaluate(bench.segmenter, split, settings, device=bench.device, autocast_dtype=bench.autocast)
    return result.metric("mIoU")


def smooth(losses: Sequence[float]) -> list[float]:
    return [sum(losses[i : i + WINDOW]) / WINDOW for i in range(0, len(losses) - WINDOW + 1, WINDOW // 2)]


def picture(curves: dict[str, list[list[float]]]) -> str:
    """An SVG with one line a run."""
    lines = {kind: [smooth(run) for run in runs] for kind, runs in curves.items()}
    every = [value for runs in lines.values() for run in runs for value in run]
    low, high = min(every), max(every)
    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 400" font-size="13">',
        '<rect width="640" height="400" fill="white"/>',
    ]
    for i in range(5):
        value, y = high - (high - low) * i / 4, 30 + 80 * i
        parts.append(f'<line x1="60" x2="620" y1="{y}" y2="{y}" stroke="#ddd"/>')
        parts.append(f'<text x="10" y="{y + 4}">{value:.1f}</text>')
    for place, (kind, runs) in enumerate(lines.items()):
        colour = COLOURS[kind]
        for run in runs:
            width, height = 560 / max(len(run) - 1, 1), 320 / (high - low)
            places = ((60 + width * i, 30 + height * (high - value)) for i, value in enumerate(run))
            points = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
            parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        parts.append(f'<text x="430" y="{50 + 20 * place}" fill="{colour}">{kind} pixel decoder</text>')
    steps = len(next(iter(curves.values()))[0])
    parts.append(f'<text x="220" y="385">{steps} steps; a line a seed, means of {WINDOW} steps</text></svg>')
    return "\n".join(parts) + "\n"


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    own, rest = parser.parse_known_args(argv)
    options, settings = parse(rest)
    device = torch.device(options.device)
    config = load_config([*settings, f"scheduler.total_iter={own.steps}"])
    table = compare(config, device)
    sys.stdout.write(json.dumps(table, indent=1) + "\n")
    curves: dict[str, list[list[float]]] = {kind: [] for kind in COLOURS}
    scores: dict[str, list[float | None]] = {kind: [] for kind in COLOURS}
    for seed in range(own.seeds):
        for kind in COLOURS:
            losses, score = run(replace(config, seed=seed), device, kind, own.steps)
            curves[kind].append(losses)
            scores[kind].append(score)
            sys.stderr.write(
                f"seed {seed}, {kind}: last {WINDOW} steps {smooth(losses)[-1]:.3f}, mIoU {score}\n"
            )
        write(rest, table, curves, scores)
    return 0


def write(
    settings: list[str],
    table: dict[str, dict[str, float]],
    curves: dict[str, list[list[float]]],
    scores: dict[str, list[float | None]],
) -> None:
    """Both files, after every seed."""
    smoothed = {kind: [[round(v, 3) for v in smooth(run)] for run in runs] for kind, runs in curves.items()}
    last = {kind: [run[-1] for run in runs] for kind, runs in smoothed.items()}
    result = {
        "torch": torch.__version__,
        "settings": settings,
        "table": table,
        "last": last,
        "mIoU": scores,
        "curves": smoothed,
    }
    (HERE / "precision.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (HERE / "precision.svg").write_text(picture(curves), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
