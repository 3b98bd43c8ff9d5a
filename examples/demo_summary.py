"""The demo's last words: the score before and after training, and where the pictures are.

    python examples/demo_summary.py demo-run

reads the evaluations that `maskshards train` logged in RUN/train/metrics.jsonl and lists RUN/pictures.
"""

import json
import sys
from pathlib import Path


def evaluations(metrics: Path) -> dict[int, float]:
    """mIoU in percent by training step, from the lines of a run's metrics.jsonl."""
    lines = (json.loads(line) for line in metrics.read_text().splitlines())
    return {line["step"]: line["mIoU"] for line in lines if line["kind"] == "eval"}


def main(run: Path) -> None:
    miou = evaluations(run / "train" / "metrics.jsonl")
    first, last = min(miou), max(miou)
    overlays = sorted((run / "pictures" / "overlays").rglob("*.jpg"))
    print(f"\nprediction pictures ({len(overlays)}):")
    for path in overlays[:5]:
        print(f"  {path}")
    print("\nbackbone: dinov3_tiny16 with RANDOM frozen weights; all that was learned is in adapter and head")
    print(f"mIoU before training: {miou[first]:6.2f}   (step {first})")
    print(f"mIoU after training:  {miou[last]:6.2f}   (step {last})")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "demo-run"))
