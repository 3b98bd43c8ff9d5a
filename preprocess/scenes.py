"""A small made data set in the ADE20K folder layout, for the demo and for tests that need real files.

Every class has its own colour and texture, so the scenes are easy to learn; everything else is as
awkward as real data: sizes differ, shapes overlap and touch the border, some pixels are unlabelled,
images are lossy JPEGs and the label maps keep 0 for "no class". Each image is drawn from (seed, split,
number) alone, so the same seed gives the same bytes with the same Pillow.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from maskshards.shards.storage.atomic_write import naming

RGB = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Texture:
    """How a class looks: two colours mixed by a wave, plus grain."""

    name: str
    light: RGB
    dark: RGB
    period_px: float  # of the wave; smaller is finer
    angle_turn: float  # direction of the wave, in turns
    checks: bool = False  # a second wave across the first


GROUNDS = (
    Texture("sky", (150, 195, 245), (110, 160, 225), 60, 0.25),
    Texture("grass", (85, 150, 60), (50, 105, 35), 5, 0.20, checks=True),
    Texture("sand", (225, 205, 150), (200, 175, 115), 9, 0.05),
    Texture("water", (45, 110, 150), (20, 70, 115), 12, 0.27),
    Texture("brick", (175, 80, 60), (120, 45, 35), 10, 0.00, checks=True),
)
THINGS = (
    Texture("ball", (250, 140, 30), (215, 100, 10), 14, 0.10),
    Texture("crate", (140, 95, 45), (95, 60, 25), 7, 0.00),
    Texture("tent", (150, 60, 170), (105, 30, 125), 11, 0.35),
    Texture("ring", (250, 235, 60), (220, 195, 20), 16, 0.15, checks=True),
    Texture("kite", (245, 150, 190), (215, 95, 150), 8, 0.40),
    Texture("pole", (205, 205, 210), (130, 130, 135), 6, 0.50),
    Texture("stone", (80, 80, 85), (45, 45, 50), 9, 0.30, checks=True),
)
CLASSES = tuple(texture.name for texture in GROUNDS + THINGS)
SHORTEST_PX, LONGEST_PX = 96, 176


def _paint(texture: Texture, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """A (height, width, 3) float image of `texture`, its wave shifted at random and grained."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    turn = 2 * np.pi * (texture.angle_turn + rng.uniform(-0.02, 0.02))
    phase = rng.uniform(0, 2 * np.pi, size=2)
    along = (x * np.cos(turn) + y * np.sin(turn)) * 2 * np.pi / texture.period_px + phase[0]
    mix = 0.5 + 0.5 * np.sin(along)
    if texture.checks:
        across = (y * np.cos(turn) - x * np.sin(turn)) * 2 * np.pi / texture.period_px + phase[1]
        mix = 0.5 * mix + 0.5 * (np.sin(across) > 0)
    light, dark = np.array(texture.light, np.float64), np.array(texture.dark, np.float64)
    grain = rng.normal(0, 7, size=(height, width, 1))
    return np.asarray(dark + (light - dark) * mix[..., None] + grain)


def _shape(name: str, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """A (height, width) bool mask of one thing at a random place, perhaps cut by the border."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    radius = rng.uniform(0.14, 0.24) * min(height, width)
    dy, dx = y - rng.uniform(0, height), x - rng.uniform(0, width)
    if name in ("ball", "stone"):
        squash = 1.0 if name == "ball" else 0.6
        return np.asarray((dx**2 + (dy / squash) ** 2) <= radius**2)
    if name == "ring":
        distance = np.hypot(dx, dy)
        return np.asarray((distance <= radius * 1.1) & (distance >= radius * 0.55))
    if name == "crate":
        return np.asarray(np.maximum(np.abs(dx), np.abs(dy)) <= radius * 0.9)
    if name == "tent":
        return np.asarray((dy >= -radius) & (dy <= radius) & (np.abs(dx) <= (dy + radius) * 0.7))
    if name == "kite":
        return np.asarray(np.abs(dx) + 0.7 * np.abs(dy) <= radius)
    return np.asarray((np.abs(dx) <= radius * 0.3) & (np.abs(dy) <= radius * 2.5))  # pole


def draw_scene(seed: int, split: str, number: int) -> tuple[np.ndarray, np.ndarray]:
    """One scene: image (H, W, 3) uint8 and label map (H, W) uint8 with 0 = unlabelled, k = CLASSES[k - 1]."""
    words = [seed, number, *split.encode()]
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(words)))
    height, width = (int(v) for v in rng.integers(SHORTEST_PX, LONGEST_PX + 1, size=2))
    upper, lower = rng.choice(len(GROUNDS), size=2, replace=False)
    slope = rng.uniform(-0.2, 0.2)
    horizon = height * rng.uniform(0.3, 0.7) + slope * (np.arange(width) - width / 2)
    below = np.arange(height)[:, None] >= horizon[None, :]
    label = np.where(below, lower + 1, upper + 1).astype(np.uint8)
    image = np.where(
        below[..., None],
        _paint(GROUNDS[lower], height, width, rng),
        _paint(GROUNDS[upper], height, width, rng),
    )
    for thing in rng.choice(len(THINGS), size=rng.integers(2, 5), replace=False):
        mask = _shape(THINGS[thing].name, height, width, rng)
        image = np.where(mask[..., None], _paint(THINGS[thing], height, width, rng), image)
        label[mask] = len(GROUNDS) + thing + 1
    # Somebody forgot a corner: real label maps have holes, and nothing downstream may count them.
    hole_h, hole_w = (int(v) for v in rng.integers(6, 20, size=2))
    top, left = int(rng.integers(0, height - hole_h)), int(rng.integers(0, width - hole_w))
    label[top : top + hole_h, left : left + hole_w] = 0
    image = image * rng.uniform(0.85, 1.1)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8), label


def write_scenes(out: Path, *, training: int = 240, validation: int = 48, seed: int = 0) -> None:
    """Write `images/SPLIT/*.jpg`, `annotations/SPLIT/*.png` and `classes.txt` under `out`.

    Raises FileExistsError where `out` already holds something that is not an earlier result of this function,
    OSError with the file that cannot be written; then the same call makes all anew.
    """
    if out.exists() and any(out.iterdir()) and not (out / "classes.txt").exists():
        raise FileExistsError(f"{out} is not empty and holds no scenes; give another folder for the scenes")
    out.mkdir(parents=True, exist_ok=True)
    with naming(out / "classes.txt"):  # first: it says whose the folder is, should this be interrupted
        (out / "classes.txt").write_text("".join(f"{name}\n" for name in CLASSES))
    for split, count in (("training", training), ("validation", validation)):
        for folder in ("images", "annotations"):
            (out / folder / split).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            image, label = draw_scene(seed, split, number)
            name = f"scene_{split}_{number:05d}"
            with naming(out / "images" / split / f"{name}.jpg") as path:
                Image.fromarray(image).save(path, quality=92)
            with naming(out / "annotations" / split / f"{name}.png") as path:
                Image.fromarray(label).save(path)
