"""Both heads on CamVid over several seeds, as a table.

python benchmarks/camvid.py SHARDS DINOV2_VITS14_FOLDER [--heads m2f linear] [--seeds 0 1 2] [--small]
[--out runs/camvid] [key=value ...]

Trains each recipe (configs/camvid-dinov2s-HEAD.yaml) once a seed with `maskshards train` into OUT/HEAD-SEED,
where curves and a report stay, and prints loss, mIoU on the whole validation split and wall time. A run that
is there is continued, one that is done is read. --small is what a CPU can do in an afternoon: 224 px, batch
2, 300 steps.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from maskshards.train.tracking.metrics_log import read_metrics

SMALL = [
    "bs=2", "num_workers=1", "cpu_autocast=True", "scheduler.total_iter=300", "eval.eval_interval=100",
    "scheduler.constructor_kwargs.warmup_iters=30", "transforms.train.img_size=224",
    "transforms.train.crop_size=[224,224]", "transforms.eval.img_size=224", "eval.mode=whole",
    "log.interval=10",
]  # fmt: skip
SMALL_HEAD = {
    "m2f": ["decoder_head.ffn_dim=1024", "decoder_head.num_queries=50", "m2f_train.num_points=1024",
            "optimizer.lr=5e-4", "ema.decay=null"],
    "linear": [],
}  # fmt: skip
EDGE = 10  # lines of the log that the loss at either end is the mean of, at most


@dataclass(frozen=True)
class Row:
    """One finished run."""

    head: str
    seed: int
    loss: tuple[float, float]  # at the start, at the end
    miou: float  # percent, whole validation split
    minutes: float  # of training and evaluations


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("shards", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--heads", nargs="+", default=["m2f", "linear"], choices=("m2f", "linear"))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("runs/camvid"))
    words, more = parser.parse_known_args(argv)
    rows = []
    for head in words.heads:
        for seed in words.seeds:
            run = words.out / f"{head}-{seed}"
            small = SMALL + SMALL_HEAD[head] if words.small else []
            train(head, run, [f"datasets.root={words.shards}", f"model.weights={words.weights}",
                              f"seed={seed}", *small, *more])  # fmt: skip
            rows.append(read(head, seed, run))
    sys.stdout.write(table(rows) + "\n")
    return 0


def train(head: str, run: Path, arguments: list[str]) -> None:
    """One run to its end, unless it is there already."""
    if (run / "model_final.pth").is_file():
        return
    recipe = f"config=configs/camvid-dinov2s-{head}.yaml"
    command = [sys.executable, "-m", "train", recipe, f"output_dir={run}", "resume_from=auto", *arguments]
    subprocess.run(command, check=True)


def read(head: str, seed: int, run: Path) -> Row:
    records = read_metrics(run / "metrics.jsonl")
    losses = [record["loss"] for record in records if record["kind"] == "train"]
    edge = max(1, min(EDGE, len(losses) // 10))
    ends = statistics.fmean(losses[:edge]), statistics.fmean(losses[-edge:])
    scores = [record["mIoU"] for record in records if record["kind"] == "eval"]
    seconds = sum(record["seconds"] for record in records if record["kind"] in ("train", "eval"))
    return Row(head, seed, ends, scores[-1], seconds / 60)


def table(rows: list[Row]) -> str:
    """A line a run and, of each head, the mean and spread over seeds."""
    lines = ["| head | seed | loss, start to end | mIoU | minutes |", "|---|---|---|---|---|"]
    for head in dict.fromkeys(row.head for row in rows):
        own = [row for row in rows if row.head == head]
        for row in own:
            start, end = row.loss
            lines.append(
                f"| {head} | {row.seed} | {start:.3g} to {end:.3g} | {row.miou:.1f} | {row.minutes:.1f} |"
            )
        scores = [row.miou for row in own]
        spread = max(scores) - min(scores)
        lines.append(f"| {head} | mean, range | | {statistics.fmean(scores):.1f}, {spread:.1f} | |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
