"""Colours for classes, and pictures that show a label map on its image.

A class keeps its colour whatever else is in the picture. Each colour is the one farthest from all before it
(and from black, which means unlabelled, and white), so the few classes of a small data set are far apart
and 150 of them are still told apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

VOID_COLOUR = (0, 0, 0)
LEVELS = 15  # of each channel; 3375 colours to choose from
CHANNEL_WEIGHTS = (2, 4, 3)  # how much a step in red, green, blue shows, roughly
ROW_PX, SWATCH_PX, MARGIN_PX = 20, 12, 8  # legend


@cache
def class_colours(num_classes: int) -> np.ndarray:
    """(num_classes, 3) uint8 RGB; row k is the colour of class k and does not depend on num_classes."""
    steps = np.linspace(0, 255, LEVELS).round()
    choices = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(-1, 3)
    colours = np.empty((num_classes, 3), np.uint8)
    nearest = np.minimum(_distance(choices, np.zeros(3)), _distance(choices, np.full(3, 255.0)))
    for k in range(num_classes):
        colours[k] = choices[nearest.argmax()]
        if nearest.max() == 0:  # every colour is taken: begin again
            nearest = np.full(len(choices), np.inf)
        nearest = np.minimum(nearest, _distance(choices, colours[k].astype(np.float64)))
    colours.setflags(write=False)
    return colours


def _distance(choices: np.ndarray, colour: np.ndarray) -> np.ndarray:
    return ((choices - colour) ** 2) @ np.array(CHANNEL_WEIGHTS, np.float64)


def paint(class_map: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8: each pixel in its class's colour, black where the id is no class."""
    table = np.vstack([colours, np.array([VOID_COLOUR], np.uint8)])
    known = (class_map >= 0) & (class_map < len(colours))
    return table[np.where(known, class_map, len(colours))]


def overlay(
    image: np.ndarray, class_map: np.ndarray, colours: np.ndarray, opacity: float = 0.55
) -> np.ndarray:
    """(H, W, 3) uint8: the image under its painted label map, with a dark line where two classes meet."""
    mixed = np.rint((1 - opacity) * image + opacity * paint(class_map, colours).astype(np.float64))
    border = np.zeros(class_map.shape, bool)
    border[:, 1:] |= class_map[:, 1:] != class_map[:, :-1]
    border[1:] |= class_map[1:] != class_map[:-1]
    mixed[border] *= 0.4
    return mixed.astype(np.uint8)


def with_legend(
    picture: np.ndarray, class_map: np.ndarray, class_names: Sequence[str], colours: np.ndarray
) -> Image.Image:
    """The picture with a panel on its right: colour, name and share of every class in it, largest first."""
    counts = np.bincount(
        class_map[(class_map >= 0) & (class_map < len(class_names))], minlength=len(class_names)
    )
    order = [int(k) for k in np.argsort(-counts, kind="stable") if counts[k]]
    rows = [f"{_plain(class_names[k])}  {100 * counts[k] / class_map.size:.1f} %" for k in order]
    font = ImageFont.load_default(12)
    text_px = max((font.getlength(row) for row in rows), default=0)
    height, width = picture.shape[:2]
    panel_px = int(text_px) + SWATCH_PX + 3 * MARGIN_PX
    canvas = Image.new("RGB", (width + panel_px, max(height, ROW_PX * len(rows) + 2 * MARGIN_PX)), "white")
    canvas.paste(Image.fromarray(picture), (0, 0))
    draw = ImageDraw.Draw(canvas)
    for line, (k, row) in enumerate(zip(order, rows, strict=True)):
        left, top = width + MARGIN_PX, MARGIN_PX + line * ROW_PX
        red, green, blue = (int(part) for part in colours[k])
        draw.rectangle(
            (left, top, left + SWATCH_PX, top + SWATCH_PX), fill=(red, green, blue), outline="black"
        )
        draw.text((left + SWATCH_PX + MARGIN_PX, top), row, fill="black", font=font)
    return canvas


def _plain(name: str) -> str:
    """A class name on one line, without what a font cannot draw (control characters)."""
    return "".join(letter if letter.isprintable() else "?" for letter in name)
