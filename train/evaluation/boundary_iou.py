"""Boundary IoU: overlap counted only near outlines, where large objects hide their errors from mIoU.

The measure of Cheng et al., "Boundary IoU: Improving Object-Centric Image Segmentation Evaluation" (CVPR
2021), for label maps: a pixel belongs to the boundary of its class when a square window of `d` pixels to
each side holds another class or leaves the image, with d = 2 % of the image's diagonal, rounded, at least
1. Per class, over all images together, intersection = pixels of the class on the boundary in both maps,
union = in either. Ignored pixels count nowhere; in both maps they are one more region, so that an outline
along them is an outline.

A window holds one class where its largest and smallest id agree, so two sliding maxima serve all classes at
once.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from maskshards.train.evaluation.metrics import percent

DIAGONAL_SHARE = 0.02


def boundary_px(height: int, width: int) -> int:
    """How far from an outline a pixel still counts as near it, for an image of this size."""
    return max(1, round(DIAGONAL_SHARE * math.hypot(height, width)))


def boundary(class_map: Tensor, reach_px: int) -> Tensor:
    """(H, W) bool: pixels with another id, or the image's border, within `reach_px` rows and columns."""
    near = torch.ones_like(class_map, dtype=torch.bool)
    height, width = class_map.shape
    if min(height, width) > 2 * reach_px:
        ids = class_map[None, None].float()  # exact below 2^24
        uniform = _sliding_max(ids, reach_px) == -_sliding_max(-ids, reach_px)
        near[reach_px : height - reach_px, reach_px : width - reach_px] = ~uniform[0, 0]
    return near


def _sliding_max(maps: Tensor, reach_px: int) -> Tensor:
    side = 2 * reach_px + 1
    return F.max_pool2d(F.max_pool2d(maps, (side, 1), stride=1), (1, side), stride=1)


class BoundaryCounts:
    """Counts boundary pixels of each class on `device`: intersection, prediction, label."""

    def __init__(self, num_classes: int, device: torch.device | str, ignored: int) -> None:
        self.num_classes, self.ignored = num_classes, ignored
        self.counts = torch.zeros(3 * num_classes, dtype=torch.int64, device=device)

    def update(self, prediction: Tensor, label: Tensor) -> None:
        """Count one image: two (H, W) maps of class ids, `ignored` in the label where unlabelled."""
        reach_px = boundary_px(*label.shape)
        counted = label != self.ignored
        prediction = torch.where(counted, prediction, self.ignored)
        in_label = boundary(label, reach_px) & counted
        in_prediction = boundary(prediction, reach_px) & counted
        both = in_label & in_prediction & (prediction == label)
        parts = (label[both], prediction[in_prediction], label[in_label])
        self.counts += torch.cat([torch.bincount(ids, minlength=self.num_classes) for ids in parts])

    def iou_per_class(self) -> np.ndarray:
        """(K,) float64 percent; NaN for a class without boundary pixels on either side."""
        right, predicted, labelled = self.counts.view(3, self.num_classes).cpu().numpy()
        return percent(right, predicted + labelled - right)
