"""Everything that one evaluation counts, in integers on the device, summed over the ranks in one all-reduce.

Scores of single images are kept in the same way: one row an image, of which exactly one rank fills each.
Their float64 values travel as the integers with the same bits, which adding zeros does not change.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from maskshards.train.evaluation.boundary_iou import BoundaryCounts
from maskshards.train.evaluation.metrics import ConfusionMatrix, EvalResult, ImageScore, mean_defined, score


class Tally:
    """Counts of an evaluation of `num_images` images; `boundary` and `per_image` cost extra time."""

    def __init__(
        self,
        num_classes: int,
        num_images: int,
        device: torch.device | str,
        ignored: int,
        boundary: bool = False,
        per_image: bool = False,
    ) -> None:
        self.matrix = ConfusionMatrix(num_classes, device, ignored)
        self.boundary = BoundaryCounts(num_classes, device, ignored) if boundary else None
        rows = num_images if per_image else 0
        self.image_bits = torch.zeros(rows, 2, dtype=torch.int64, device=device)

    def update(self, number: int, prediction: Tensor, label: Tensor) -> Tensor:
        """Count the split's image `number`; returns its own (K, K) int64 confusion counts."""
        confusion = self.matrix.update(prediction, label)
        if self.boundary is not None:
            self.boundary.update(prediction, label)
        if len(self.image_bits):
            self.image_bits[number] = _image_scores(confusion).view(torch.int64)
        return confusion

    def reduce(self, all_reduce: Callable[[Tensor], object]) -> None:
        """Sum over ranks: `all_reduce` adds one flat int64 tensor up in place."""
        parts = [self.matrix.counts, self.image_bits.view(-1)]
        if self.boundary is not None:
            parts.append(self.boundary.counts)
        flat = torch.cat(parts)
        all_reduce(flat)
        for part, total in zip(parts, flat.split([len(part) for part in parts]), strict=True):
            part.copy_(total)

    def result(self, class_names: Sequence[str], keys: Sequence[str]) -> EvalResult:
        """The scores; `keys`, of the images by number, are read for per-image scores only."""
        result = self.matrix.result(class_names)
        if self.boundary is not None:
            iou = self.boundary.iou_per_class()
            result = replace(
                result, boundary_miou=mean_defined(iou), boundary_iou_per_class=tuple(iou.tolist())
            )
        if len(self.image_bits):
            rows = self.image_bits.view(torch.float64).tolist()
            scores = [ImageScore(key, *row) for key, row in zip(keys, rows, strict=True)]
            result = replace(result, images=tuple(scores))
        return result


def _image_scores(confusion: Tensor) -> Tensor:
    """(2,) float64 percent of one image's (K, K) counts: mean IoU over its classes, pixel accuracy."""
    one = score(confusion.cpu().numpy(), [""] * len(confusion), 1)
    return torch.tensor([one.miou, one.pixel_accuracy], dtype=torch.float64)
