"""Both heads on CamVid over seeds, as their recipes say, and a table of their scores.

python docs/benchmarks/camvid.py datasets.root=data/camvid-shards model.weights=DINOV2_VITS14_FOLDER
[--seeds 3] [--out runs/camvid] [key=value ...]

Each run is `python -m train` in OUT/HEAD-SEED; `key=value` goes to all of them. What is finished is not run
again, and what was stopped is continued, so the same command may be given again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
HEADS = ("m2f", "linear")


def run(head: str, seed: int, out: Path, settings: list[str]) -> Path:
    """Train one head from one seed in its own folder, which is returned."""
    folder = out / f"{head}-{seed}"
    recipe = ROOT / "configs" / f"camvid-dinov2s-{head}.yaml"
    words = [f"config={recipe}", f"output_dir={folder}", f"seed={seed}", "resume_from=auto", *settings]
    subprocess.run([sys.executable, "-m", "train", *words], check=True)
    return folder


def records(folder: Path, kind: str) -> list[dict[str, float]]:
    """The lines of one kind in metrics.jsonl."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == kind]


def row(head: str, folders: list[Path]) -> str:
    """One line of the table: the score of each seed, their mean and spread, the minutes of training steps."""
    scores = [records(folder, "eval")[-1]["mIoU"] for folder in folders]
    minutes = [sum(one["seconds"] for one in records(folder, "train")) / 60 for folder in folders]
    spread = f" +- {statistics.stdev(scores):.1f}" if len(scores) > 1 else ""
    each = ", ".join(f"{score:.1f}" for score in scores)
    return f"| {head} | {each} | {statistics.mean(scores):.1f}{spread} | {statistics.mean(minutes):.1f} |"


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs/camvid"))
    own, settings = parser.parse_known_args(argv)
    rows = [row(head, [run(head, seed, own.out, settings) for seed in range(own.seeds)]) for head in HEADS]
    table = ["| head | mIoU of each seed | mean and deviation | minutes a run |", "|---|---|---|---|", *rows]
    sys.stdout.write("\n".join(table) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
