"""How well the lane order mixes, beside webdataset's buffer and the window shuffle of MosaicML's py1e.

    python benchmarks/shuffle_quality.py docs/benchmarks/shuffle_quality.svg

prints a Markdown table for a set of ADE20K's size (20,210 samples, 256 a shard) and batches of 16, and draws
how far samples travel. webdataset's stage is the real one, over shards in random order; py1e is written here
from its description: it shuffles the shards, then moves each sample by a uniform random distance within a
window, here 2^18 samples (its default, wider than the set) and 2,048.
"""

from __future__ import annotations

import random
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import webdataset as wds

from maskshards.shards.order.order import Order

NUM_SAMPLES, SAMPLES_PER_SHARD, BATCH, EPOCHS = 20_210, 256, 16, 8
SHARDS = np.append(
    np.full(NUM_SAMPLES // SAMPLES_PER_SHARD, SAMPLES_PER_SHARD), NUM_SAMPLES % SAMPLES_PER_SHARD
)
STARTS = np.concatenate([[0], np.cumsum(SHARDS)])
COLORS = {
    "lanes": "#d62728",
    "webdataset, buffer 1,000": "#1f77b4",
    "py1e, window 2,048": "#2ca02c",
    "full permutation": "#999999",
}


def lanes(epoch: int) -> np.ndarray:
    """(N,) sample numbers in the order in which this project reads them."""
    order = Order(SHARDS, 0, BATCH)
    shards, places = order.samples(np.arange(epoch * NUM_SAMPLES, (epoch + 1) * NUM_SAMPLES))
    return STARTS[shards] + places


def shuffled_shards(chance: np.random.Generator) -> np.ndarray:
    return np.concatenate([np.arange(STARTS[s], STARTS[s + 1]) for s in chance.permutation(len(SHARDS))])


def buffered(epoch: int) -> np.ndarray:
    """Shards in random order, as a correct epoch has them (1.0.2 repeats one), then its buffer."""
    samples = iter(shuffled_shards(np.random.default_rng(epoch)).tolist())
    return np.array(list(wds.shuffle(1000, initial=100, rng=random.Random(epoch))(samples)))


def windowed(epoch: int, window: int) -> np.ndarray:
    chance = np.random.default_rng(epoch)
    base = shuffled_shards(chance)
    moved = np.arange(NUM_SAMPLES) + chance.uniform(-window / 2, window / 2, NUM_SAMPLES)
    return base[np.argsort(moved, kind="stable")]


def permuted(epoch: int) -> np.ndarray:
    return np.random.default_rng(epoch).permutation(NUM_SAMPLES)


def shards_per_batch(order: np.ndarray) -> float:
    """Mean number of distinct shards among the samples of a batch."""
    shard = np.searchsorted(STARTS, order, side="right") - 1
    batches = shard[: NUM_SAMPLES // BATCH * BATCH].reshape(-1, BATCH)
    return float(np.mean([len(np.unique(batch)) for batch in batches]))


def neighbours_kept(order: np.ndarray) -> float:
    """Share of samples whose follower in the files is in the same batch."""
    place = np.empty(NUM_SAMPLES, np.int64)
    place[order] = np.arange(NUM_SAMPLES)
    return float(np.mean(place[1:] // BATCH == place[:-1] // BATCH))


def moves(order: np.ndarray) -> np.ndarray:
    """(N,) distance between a sample's places in the files and in the epoch, as a share of the epoch."""
    return np.abs(np.arange(NUM_SAMPLES) - order) / NUM_SAMPLES


def apart(before: np.ndarray, after: np.ndarray) -> float:
    """Correlation of a sample's places in two epochs; 0 is best."""
    return float(np.corrcoef(np.argsort(before), np.argsort(after))[0, 1])


def draw(curves: dict[str, np.ndarray]) -> str:
    """An SVG of the share of samples (upwards) that moved by at most a share of the epoch (to the right)."""
    width, height, left, top = 560, 320, 50, 20
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width + left + 20}" height="{height + top + 50}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect x="{left}" y="{top}" width="{width}" height="{height}" fill="none" stroke="#444"/>',
        f'<text x="{left + width / 2}" y="{top + height + 38}" text-anchor="middle">'
        "distance moved, share of the epoch</text>",
        f'<text transform="translate(14 {top + height / 2}) rotate(-90)" text-anchor="middle">'
        "share of samples</text>",
    ]
    for tick in (0, 0.25, 0.5, 0.75, 1):
        x, y = left + tick * width, top + (1 - tick) * height
        lines.append(f'<text x="{x}" y="{top + height + 18}" text-anchor="middle">{tick}</text>')
        lines.append(f'<text x="{left - 6}" y="{y + 4}" text-anchor="end">{tick}</text>')
    for number, (name, distances) in enumerate(curves.items()):
        shares = np.linspace(0, 1, 101)
        at = np.quantile(distances, shares)
        points = " ".join(
            f"{left + x * width:.1f},{top + (1 - y) * height:.1f}" for x, y in zip(at, shares, strict=True)
        )
        lines.append(f'<polyline points="{points}" fill="none" stroke="{COLORS[name]}" stroke-width="2"/>')
        y = top + height - 80 + 18 * number
        lines.append(f'<text x="{left + width - 180}" y="{y}" fill="{COLORS[name]}">{name}</text>')
    return "\n".join([*lines, "</svg>", ""])


def main() -> None:
    kinds = {
        "lanes": lanes,
        "webdataset, buffer 1,000": buffered,
        "py1e, window 2,048": lambda epoch: windowed(epoch, 2048),
        "py1e, window 2^18": lambda epoch: windowed(epoch, 1 << 18),
        "full permutation": permuted,
    }
    rows, curves = [], {}
    for name, kind in kinds.items():
        epochs = [kind(epoch) for epoch in range(EPOCHS)]
        if any(len(np.unique(epoch)) != NUM_SAMPLES for epoch in epochs):
            raise RuntimeError(f"{name} lost samples")
        distances = np.concatenate([moves(epoch) for epoch in epochs])
        if name in COLORS:
            curves[name] = distances
        rows.append(
            f"| {name} | {np.mean([shards_per_batch(e) for e in epochs]):.1f} | {np.mean(distances):.3f} | "
            f"{np.mean([neighbours_kept(e) for e in epochs]):.5f} | "
            f"{np.mean([abs(apart(*pair)) for pair in pairwise(epochs)]):.3f} |"
        )
    Path(sys.argv[1]).write_text(draw(curves))
    head = "| order | shards a batch | mean distance moved | file neighbours in one batch | epochs alike |"
    sys.stdout.write("\n".join([head, "|---|---|---|---|---|", *rows, ""]))


if __name__ == "__main__":
    main()
