"""Many small pairs for a measured build: 500 made pictures under as many names as are asked for.

    python benchmarks/format_pairs.py --out FOLDER --samples 50000

Names beyond the pictures are hard links, so the folder is small; the build reads, checks and stores each of
them like any other.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np
from PIL import Image

PICTURES, CLASSES = 500, 10


def write(out: Path, samples: int) -> None:
    """Pairs of 40 to 71 px a side: blocks of colour under blocks of the labels 1 to 10."""
    random = np.random.default_rng(0)
    images, labels = out / "images/training", out / "annotations/training"
    for folder in (images, labels):
        folder.mkdir(parents=True)
    (out / "classes.txt").write_text("".join(f"class {number}\n" for number in range(CLASSES)))
    for number in range(samples):
        image, label = images / f"picture_{number:06d}.jpg", labels / f"picture_{number:06d}.png"
        if number < PICTURES:
            height, width = random.integers(40, 72, 2)
            colours = random.integers(0, 256, (9, 9, 3), np.uint8).repeat(8, 0).repeat(8, 1)
            values = random.integers(1, CLASSES + 1, (9, 9), np.uint8).repeat(8, 0).repeat(8, 1)
            Image.fromarray(colours[:height, :width]).save(image, quality=85)
            Image.fromarray(values[:height, :width]).save(label)
        else:
            os.link(images / f"picture_{number % PICTURES:06d}.jpg", image)
            os.link(labels / f"picture_{number % PICTURES:06d}.png", label)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=50_000)
    args = parser.parse_args()
    write(args.out, args.samples)
