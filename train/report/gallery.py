"""What an evaluation looks like: pictures of single images, and which classes are taken for which.

`Gallery` is an observer for `evaluate`: it keeps a few images as small pictures (photograph,
labels, prediction, errors), those with the lowest mIoU and, beside them, some taken evenly over the split, so
that a report shows both the trouble and the rule. It holds no more than it shows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from maskshards.train.evaluation.evaluate import Observation
from maskshards.train.evaluation.metrics import EvalResult, score
from maskshards.train.report.palette import class_colours, overlay, paint

# RGB of an error map: light, middle and dark, so that they differ without their colours too.
RIGHT, WRONG, UNLABELLED = (205, 226, 240), (213, 94, 0), (40, 40, 40)


@dataclass(frozen=True, slots=True)
class GalleryItem:
    """One image as pictures of one size, (h, w, 3) uint8."""

    key: str
    miou: float  # of this image alone, percent; NaN where nothing is labelled
    size_px: tuple[int, int]  # height, width of the image itself
    classes: tuple[int, ...]  # that stand in labels or prediction, most pixels first
    image: np.ndarray
    label: np.ndarray
    prediction: np.ndarray
    errors: np.ndarray


@dataclass(frozen=True, slots=True)
class ConfusionPair:
    """Pixels of one class that were given to another."""

    label: str
    prediction: str
    pixels: int
    share: float  # percent of the class's labelled pixels


class Gallery:
    """Keeps up to `worst` images of lowest mIoU, and up to `spread` taken evenly from `num_images`."""

    def __init__(
        self, num_classes: int, num_images: int, worst: int = 6, spread: int = 6, longest_px: int = 360
    ) -> None:
        self._colours, self._longest_px = class_colours(num_classes), longest_px
        self._limit = worst
        self._even = {k * num_images // spread for k in range(spread)} if num_images else set()
        self._seen = 0
        self._worst: list[GalleryItem] = []
        self._spread: list[GalleryItem] = []

    def __call__(self, seen: Observation) -> None:
        """Look at one evaluated image."""
        miou = score(seen.confusion.cpu().numpy(), [""] * len(seen.confusion), 1).miou
        bad = len(self._worst) < self._limit or miou < self._worst[-1].miou
        even = self._seen in self._even
        self._seen += 1
        if not even and (math.isnan(miou) or not bad or not self._limit):
            return
        item = self._item(seen, miou)
        if even:
            self._spread.append(item)
        elif bad:
            self._worst = sorted([*self._worst, item], key=lambda one: (one.miou, one.key))[: self._limit]

    @property
    def worst(self) -> tuple[GalleryItem, ...]:
        """Lowest mIoU first."""
        return tuple(self._worst)

    @property
    def spread(self) -> tuple[GalleryItem, ...]:
        """In the order of the split."""
        return tuple(self._spread)

    def _item(self, seen: Observation, miou: float) -> GalleryItem:
        height, width, _ = seen.image.shape
        step = max(1, -(-max(height, width) // self._longest_px))
        image, label, prediction = (
            part.cpu().numpy()
            for part in (seen.image, seen.label[::step, ::step], seen.prediction[::step, ::step])
        )
        small = label.shape[1], label.shape[0]
        photo = np.asarray(Image.fromarray(image).resize(small, Image.Resampling.BOX))
        return GalleryItem(
            seen.key,
            miou,
            (height, width),
            classes_in((label, prediction), len(self._colours)),
            photo,
            paint(label, self._colours),
            overlay(photo, prediction, self._colours, opacity=0.75),
            error_map(prediction, label, len(self._colours)),
        )


def classes_in(maps: Sequence[np.ndarray], num_classes: int) -> tuple[int, ...]:
    """The class ids in (H, W) maps together, most pixels first; ids that are no class are left out."""
    ids = np.concatenate([one[(one >= 0) & (one < num_classes)] for one in maps])
    counts = np.bincount(ids.astype(np.int64), minlength=num_classes)
    return tuple(int(k) for k in np.argsort(-counts, kind="stable") if counts[k])


def error_map(prediction: np.ndarray, label: np.ndarray, num_classes: int) -> np.ndarray:
    """(H, W, 3) uint8: right, wrong and unlabelled pixels (ids that are no class) in one colour each."""
    kind = np.where(label >= num_classes, 2, prediction != label)
    return np.array([RIGHT, WRONG, UNLABELLED], np.uint8)[kind.astype(np.int64)]


def confusion_pairs(result: EvalResult, limit: int = 20) -> list[ConfusionPair]:
    """The (label, prediction) pairs that cost the most pixels, largest first."""
    wrong = result.confusion.copy()
    np.fill_diagonal(wrong, 0)
    places = np.argsort(-wrong, axis=None, kind="stable")[:limit]
    pairs = []
    for row, column in zip(*np.unravel_index(places, wrong.shape), strict=True):
        pixels = int(wrong[row, column])
        if pixels:
            share = 100 * pixels / result.labelled_pixels[row]
            pairs.append(ConfusionPair(result.class_names[row], result.class_names[column], pixels, share))
    return pairs
