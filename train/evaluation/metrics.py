"""Semantic segmentation scores from one int64 confusion matrix.

Pixels are counted as integers, on the device where the predictions are, and summed over the ranks in one
all-reduce; every score is computed from the counts at the end, in float64. The rules are those of
facebookresearch/dinov3 (and of mmsegmentation before it): with I, P, G the pixels of a class in the
intersection, the prediction and the labels, IoU = I / (P + G - I), accuracy = recall = I / G,
precision = I / P, Dice = 2I / (P + G), F = 2 * precision * recall / (precision + recall),
aAcc = sum I / sum G. Ignored pixels count nowhere.

A 0/0 is NaN and drops out of the mean over classes: a class in neither labels nor prediction is absent, has
no score and is listed as such. A class that is only predicted counts as IoU 0. F has the value of Dice where
it is defined, but is NaN where I = 0 (Dice is 0 there), so mean F >= mean Dice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from maskshards.train.config.results import METRICS

IGNORED = 255  # label of a pixel that counts nowhere


@dataclass(frozen=True, slots=True)
class ImageScore:
    """One image's own scores, percent; its mIoU is over the classes in its labels or prediction."""

    key: str
    miou: float
    pixel_accuracy: float


@dataclass(frozen=True, slots=True)
class EvalResult:
    """Scores of one evaluation, in percent; NaN where a score is undefined."""

    miou: float  # mean IoU over the classes that are present
    mean_accuracy: float  # mean over the labelled classes of I / G
    pixel_accuracy: float  # share of the labelled pixels that are right
    mean_dice: float
    mean_fscore: float
    mean_precision: float  # over the predicted classes
    mean_recall: float  # the same number as mean_accuracy, under its other name
    iou_per_class: tuple[float, ...]  # K each, NaN where 0/0
    accuracy_per_class: tuple[float, ...]
    dice_per_class: tuple[float, ...]
    fscore_per_class: tuple[float, ...]
    precision_per_class: tuple[float, ...]
    recall_per_class: tuple[float, ...]
    labelled_pixels: tuple[int, ...]  # G, K numbers
    predicted_pixels: tuple[int, ...]  # P, K numbers; ignored pixels are not among them
    class_names: tuple[str, ...]  # K
    num_images: int  # images counted, all ranks together
    confusion: np.ndarray = field(compare=False, repr=False)  # (K, K) int64: row = label, column = prediction
    boundary_miou: float | None = None  # mean boundary IoU, where it was asked for (`boundary_iou`)
    boundary_iou_per_class: tuple[float, ...] = ()  # K where asked for
    images: tuple[ImageScore, ...] = ()  # one an image in the order of the shards, where asked for

    @property
    def absent_classes(self) -> tuple[str, ...]:
        """Names of the classes that occur in neither labels nor predictions: they have no IoU."""
        seen = zip(self.class_names, self.labelled_pixels, self.predicted_pixels, strict=True)
        return tuple(name for name, labelled, predicted in seen if labelled == predicted == 0)

    def metric(self, name: str) -> float:
        """The score called `name` in a configuration (a key of METRICS), in percent; ValueError otherwise."""
        if name not in METRICS:
            raise ValueError(f"there is no metric {name!r}; choose one of {', '.join(METRICS)}")
        return float(getattr(self, METRICS[name]))


class ConfusionMatrix:
    """Counts pixels by (label, prediction) on `device`."""

    def __init__(self, num_classes: int, device: torch.device | str = "cpu", ignored: int = IGNORED) -> None:
        if num_classes < 1:
            raise ValueError(f"a confusion matrix needs at least one class, not {num_classes}")
        self.num_classes, self.ignored = num_classes, ignored
        # The last number counts images, so that one all-reduce carries everything.
        self.counts = torch.zeros(num_classes**2 + 1, dtype=torch.int64, device=device)

    def update(self, prediction: Tensor, label: Tensor) -> Tensor:
        """Count one image: two integer maps of one shape, class ids, `ignored` in the label where unlabelled.

        Returns the (K, K) int64 counts of this image alone. Raises ValueError for maps of different shape and
        for ids that are no class.
        """
        if prediction.shape != label.shape:
            raise ValueError(
                f"prediction {tuple(prediction.shape)} and label {tuple(label.shape)} differ in shape"
            )
        counted = label != self.ignored
        rows = torch.where(counted, label, 0).long()
        columns = torch.where(counted, prediction, 0).long()
        self._check_ids(rows, columns)
        beyond = self.num_classes**2  # one cell more, for the pixels that do not count
        cells = torch.where(counted, rows * self.num_classes + columns, beyond)
        counts = torch.bincount(cells.flatten(), minlength=beyond + 1)[:-1]
        self.counts[:-1] += counts
        self.counts[-1] += 1
        return counts.view(self.num_classes, self.num_classes)

    def _check_ids(self, rows: Tensor, columns: Tensor) -> None:
        if not rows.numel():
            return
        extremes = torch.stack([*torch.aminmax(rows), *torch.aminmax(columns)]).tolist()
        for name, least, most in (("label", *extremes[:2]), ("prediction", *extremes[2:])):
            if not 0 <= least <= most < self.num_classes:
                raise ValueError(
                    f"{name} ids go from {least} to {most}, expected 0 to {self.num_classes - 1}"
                    + (f" or {self.ignored}" if name == "label" else "")
                )

    @property
    def num_images(self) -> int:
        return int(self.counts[-1])

    def result(self, class_names: Sequence[str]) -> EvalResult:
        """The scores of all that was counted; ValueError unless there is one name per class."""
        cells = self.counts[:-1].view(self.num_classes, self.num_classes).cpu().numpy()
        return score(cells, class_names, self.num_images)


def score(confusion: np.ndarray, class_names: Sequence[str], num_images: int) -> EvalResult:
    """All scores of a (K, K) int64 confusion matrix (row = label, column = prediction)."""
    if confusion.shape != (len(class_names), len(class_names)):
        raise ValueError(
            f"{len(class_names)} class names do not fit a confusion matrix of shape {confusion.shape}"
        )
    right = np.diagonal(confusion).astype(np.float64)
    labelled, predicted = confusion.sum(axis=1), confusion.sum(axis=0)
    iou = percent(right, labelled + predicted - np.diagonal(confusion))
    recall, precision = percent(right, labelled), percent(right, predicted)
    dice, fscore = percent(2 * right, labelled + predicted), _fscore(precision, recall)
    return EvalResult(
        miou=mean_defined(iou),
        mean_accuracy=mean_defined(recall),
        pixel_accuracy=float(percent(right.sum(), labelled.sum())),
        mean_dice=mean_defined(dice),
        mean_fscore=mean_defined(fscore),
        mean_precision=mean_defined(precision),
        mean_recall=mean_defined(recall),
        iou_per_class=tuple(iou.tolist()),
        accuracy_per_class=tuple(recall.tolist()),
        dice_per_class=tuple(dice.tolist()),
        fscore_per_class=tuple(fscore.tolist()),
        precision_per_class=tuple(precision.tolist()),
        recall_per_class=tuple(recall.tolist()),
        labelled_pixels=tuple(labelled.tolist()),
        predicted_pixels=tuple(predicted.tolist()),
        class_names=tuple(class_names),
        num_images=num_images,
        confusion=confusion,
    )


def percent(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """100 * part / whole in float64, NaN where whole is 0."""
    whole = np.asarray(whole, np.float64)
    return 100 * np.divide(part, whole, out=np.full(whole.shape, np.nan), where=whole > 0)


def _fscore(precision: np.ndarray, recall: np.ndarray) -> np.ndarray:
    """The harmonic mean per class (percent), NaN where either is undefined or both are 0."""
    total = precision + recall
    return np.divide(
        2 * precision * recall, total, out=np.full(total.shape, np.nan), where=np.nan_to_num(total) > 0
    )


def mean_defined(per_class: np.ndarray) -> float:
    """Mean over the classes that have a value; NaN if none has."""
    defined = per_class[~np.isnan(per_class)]
    return float(defined.mean()) if len(defined) else float("nan")
