"""Which choices of configs/camvid-cpu.yaml matter: one change at a time, at equal steps.

    python benchmarks/ablations.py SHARDS DINOV2_VITS14_FOLDER [--steps 150] [--val 30] [--seeds 0]
        [--only NAME ...] [--out runs/ablations]

Trains the recipe as it stands and then each variant of VARIANTS with `maskshards train`, the schedule cut to
STEPS, and scores the first VAL validation images. A run that is there is continued, one that is done is read.
Prints a Markdown table after each run.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from maskshards.train.tracking.metrics_log import read_metrics

ROOT = Path(__file__).resolve().parents[1]
VARIANTS = {
    "the recipe": [],
    "mask loss over unlabelled pixels too": ["m2f_train.ignore_void=False"],
    "no weight average": ["ema.decay=null"],
    "no colours": ["transforms.train.photometric=none"],
    "the published colours": ["transforms.train.photometric=reference"],
    "large scale jitter": [
        "transforms.train.jitter=lsj", "transforms.train.random_img_size_ratio_range=null",
    ],
    "rate of the adapter x 0.1": ["optimizer.lr_multipliers.segmentation_model.0=0.1"],
    "rate of adapter and head 1e-4": ["optimizer.lr=1e-4"],
    "256 points": ["m2f_train.num_points=256"],
    "1,024 points": ["m2f_train.num_points=1024"],
    "published precision": ["precision=reference"],
    "the published algorithm": [
        "precision=reference", "m2f_train.ignore_void=False", "ema.decay=null",
        "transforms.train.photometric=reference",
    ],
}  # fmt: skip


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("shards", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--val", type=int, default=30)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--only", nargs="+", default=list(VARIANTS), choices=VARIANTS, metavar="NAME")
    parser.add_argument("--out", type=Path, default=Path("runs/ablations"))
    args = parser.parse_args(argv)
    scores: dict[str, list[float]] = {}
    for name in args.only:
        for seed in args.seeds:
            scores.setdefault(name, []).append(score(name, seed, args))
            sys.stdout.write(table(scores) + "\n\n")
    return 0


def score(name: str, seed: int, args: argparse.Namespace) -> float:
    """mIoU in percent of a variant's last weights."""
    run = args.out / f"{list(VARIANTS).index(name):02d}-{seed}-{args.steps}"
    if not (run / "model_final.pth").is_file():
        command = [
            sys.executable, "-m", "maskshards", "train", f"config={ROOT / 'configs' / 'camvid-cpu.yaml'}",
            f"output_dir={run}", f"datasets.root={args.shards}", f"model.weights={args.weights}",
            f"scheduler.total_iter={args.steps}", f"eval.eval_interval={args.steps}",
            f"eval.max_val_samples={args.val}", f"seed={seed}", "resume_from=auto", *VARIANTS[name],
        ]  # fmt: skip
        subprocess.run(command, check=True)
    return [record["mIoU"] for record in read_metrics(run / "metrics.jsonl") if record["kind"] == "eval"][-1]


def table(scores: dict[str, list[float]]) -> str:
    lines = ["| variant | mIoU | beside the recipe |", "|---|---|---|"]
    first = statistics.fmean(next(iter(scores.values())))
    for name, found in scores.items():
        mean = statistics.fmean(found)
        each = "" if len(found) == 1 else " (" + ", ".join(f"{miou:.1f}" for miou in found) + ")"
        lines.append(f"| {name} | {mean:.1f}{each} | {mean - first:+.1f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
