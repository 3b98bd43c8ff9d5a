"""The matched loss of all supervised layers and images at once, and the linear head's loss.

Equal to calling `MaskClassificationLoss` layer by layer on the same points, but without dense masks,
and with one copy to the host (costs), one copy back (matches) and one all-reduce (normalisers) a call,
whatever the number of layers and images. All arithmetic is float32. Mask2Former: Cheng et al. 2022,
arXiv 2112.01527.

Letters: L layer, B image, Q query, C class, K label index of an image, R matched row, P point.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from shards.batch import VOID, CropBatch
from train.label_points import labels_present, padded, targets_of_rows
from train.mask_classification import MaskClassificationLoss
from train.matcher import Assigner, CostWeights, matching_costs
from train.model.prediction import Prediction
from train.nonfinite import check_costs
from train.points import (
    MATCH,
    ROWS,
    nearest_zero,
    point_keys,
    random_points,
    row_offsets,
    sample_maps,
    shifted,
)
from train.transfer import HostCopy, to_device

__all__ = ["LossSettings", "LossTerms", "MaskClassificationLoss", "MatchedLoss", "linear_loss"]

CANDIDATES_AT_ONCE = (
    2**24
)  # candidate points held at a time while the uncertain ones are chosen: about 0.5 GB


@dataclass(frozen=True)
class LossSettings:
    """Mask2Former's settings; the defaults are its published ones."""

    num_points: int = 12544
    oversample_ratio: float = 3.0
    importance_sample_ratio: float = 0.75
    mask_coefficient: float = 5.0
    dice_coefficient: float = 5.0
    class_coefficient: float = 2.0
    no_object_coefficient: float = 0.1
    ignore_void: bool = (
        False  # True: points on ignored pixels and padding weigh nothing, instead of "not this mask"
    )

    def __post_init__(self) -> None:
        if self.num_points < 1 or self.oversample_ratio < 1 or not 0 <= self.importance_sample_ratio <= 1:
            raise ValueError(
                "loss settings: expected num_points >= 1, oversample_ratio >= 1 and importance_sample_ratio "
                f"in 0..1; found {self}"
            )

    @property
    def point_counts(self) -> tuple[int, int, int]:
        """Candidates, how many of them are kept, and how many fresh points complete a row."""
        kept = int(self.importance_sample_ratio * self.num_points)
        return int(self.num_points * self.oversample_ratio), kept, self.num_points - kept


@dataclass(frozen=True, slots=True)
class LossTerms:
    """What one micro-step's loss is made of."""

    mask: Tensor  # (L,) binary cross entropy, unweighted, already divided by the global number of segments
    dice: Tensor  # (L,)
    classify: Tensor  # (L,) cross entropy of the classes
    total: Tensor  # scalar: the weighted sum over terms and layers; carries the graph
    num_segments: int  # of this rank's crops: matched rows of one layer
    carried: np.ndarray | None = None  # the `carry` values of this call, now on the host


class MatchedLoss:
    """Matches and compares all layers' predictions with the crops. Holds no tensors and no generator."""

    def __init__(
        self, settings: LossSettings, num_classes: int, *, dump_dir: Path | None = None, threads: int = 4
    ) -> None:
        self.settings, self.num_classes, self.dump_dir = settings, num_classes, dump_dir
        self._weights = CostWeights(
            settings.mask_coefficient, settings.dice_coefficient, settings.class_coefficient
        )
        self._assign = Assigner(threads)

    def __call__(
        self,
        predictions: Sequence[Prediction],
        crops: CropBatch,
        *,
        seed: int,
        world_reduce: Callable[[Tensor], Tensor] | None,
        carry: Tensor | None = None,
    ) -> LossTerms:
        """The terms of this micro-step.

        `world_reduce` sums a small tensor over all ranks (None in a single process), so that R ranks
        which average their gradients train as one process with all their images would. `carry` (n,):
        device values, flags for instance, that travel to the host with the costs instead of waiting for
        a copy of their own. Raises NonFiniteError when a matching cost is not finite.
        """
        with torch.autocast(crops.label_map.device.type, enabled=False):
            device = crops.label_map.device
            num_layers = len(predictions)
            keys = to_device(
                np.stack([point_keys(seed, crops.positions, num_layers, use) for use in (MATCH, ROWS)]),
                device,
            )
            points = random_points(keys[0], self.settings.num_points)
            bordered = padded(crops.label_map)
            costs = matching_costs(
                predictions, bordered, crops.labels, points, self._weights, self.settings.ignore_void
            )
            copy = HostCopy(_packed(costs, labels_present(crops.label_map, crops.labels.shape[1]), carry))
            candidates, _, fresh = self.settings.point_counts
            # drawn on the device while the host assigns
            points = random_points(keys[1], candidates + fresh)
            rows, carried = self._matches(copy.wait(), costs.shape, predictions, crops)
            terms = self._terms(
                predictions, crops, bordered, to_device(rows, device), keys[1], points, world_reduce
            )
            return terms if carry is None else replace(terms, carried=carried)

    def _matches(
        self, values: np.ndarray, shape: torch.Size, predictions: Sequence[Prediction], crops: CropBatch
    ) -> tuple[np.ndarray, np.ndarray]:
        """(4, R) matched rows (layer, image, query, label index), and the carried values."""
        _, num_images, _, num_labels = shape
        costs, present, carried = np.split(
            values, [math.prod(shape), math.prod(shape) + num_images * num_labels]
        )
        costs = costs.reshape(shape)
        check_costs(costs, predictions, crops, self.dump_dir)
        return self._assign(costs, present.reshape(num_images, num_labels) > 0), carried

    def _terms(
        self,
        predictions: Sequence[Prediction],
        crops: CropBatch,
        bordered: Tensor,
        rows: Tensor,
        keys: Tensor,
        points: Tensor,
        world_reduce: Callable[[Tensor], Tensor] | None,
    ) -> LossTerms:
        settings, num_layers = self.settings, len(predictions)
        classes = crops.labels[rows[1], rows[3]]
        class_logits = torch.stack([p.class_logits for p in predictions]).float()  # (L, B, Q, C + 1)
        num_matched = rows.shape[1] // num_layers
        num_queries = class_logits.shape[1] * class_logits.shape[2]
        segments, weight = _normalisers(
            num_matched, settings.no_object_coefficient, num_queries, class_logits, world_reduce
        )
        mask, dice = self._mask_sums(
            predictions, bordered, rows, row_offsets(keys[rows[0], rows[1]], classes), points
        )
        mask, dice = mask / segments, dice / segments
        classify = self._class_sums(class_logits, rows, classes) / weight
        total = (
            settings.mask_coefficient * mask.sum()
            + settings.dice_coefficient * dice.sum()
            + settings.class_coefficient * classify.sum()
        )
        return LossTerms(mask, dice, classify, total, num_matched)

    def _class_sums(self, class_logits: Tensor, rows: Tensor, classes: Tensor) -> Tensor:
        """(L,) cross entropy summed over images and queries, queries without a mask weighing less."""
        target = torch.full(class_logits.shape[:3], self.num_classes, device=class_logits.device)
        target[rows[0], rows[1], rows[2]] = classes
        loss = F.cross_entropy(class_logits.flatten(0, 2), target.flatten(), reduction="none").view_as(target)
        no_object = self.settings.no_object_coefficient
        return torch.where(target == self.num_classes, loss * no_object, loss).sum((1, 2))

    def _mask_sums(
        self,
        predictions: Sequence[Prediction],
        bordered: Tensor,
        rows: Tensor,
        offsets: Tensor,
        points: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """(L,) cross entropy and (L,) dice, summed over the matched masks of each layer."""
        maps = _matched_maps(predictions, rows)
        points = self._row_points(maps.detach(), rows, offsets, points)
        target = targets_of_rows(bordered, rows[1], rows[3], points)
        logit = sample_maps(maps, points).squeeze(1)  # (R, P)
        entropy, share = F.softplus(logit) - logit * target, logit.sigmoid()
        if self.settings.ignore_void:
            valid = 1 - targets_of_rows(bordered, rows[1], torch.full_like(rows[3], VOID), points)
            entropy, share = F.softplus(logit) * valid - logit * target, share * valid
            entropy_mean = entropy.sum(1) / valid.sum(1).clamp(min=1.0)
        else:
            entropy_mean = entropy.mean(1)
        overlap, area = 2 * (share * target).sum(1), share.sum(1) + target.sum(1)
        dice = 1 - (overlap + 1) / (area + 1)
        nothing = logit.new_zeros(len(predictions))
        return nothing.index_add(0, rows[0], entropy_mean), nothing.index_add(0, rows[0], dice)

    def _row_points(self, maps: Tensor, rows: Tensor, offsets: Tensor, points: Tensor) -> Tensor:
        """(R, P, 2): the least certain of each matched row's candidates, then fresh ones."""
        candidates, kept, fresh = self.settings.point_counts
        chosen = [points.new_zeros((0, self.settings.num_points, 2))]
        at_once = max(1, CANDIDATES_AT_ONCE // candidates)
        with torch.no_grad():
            for part in range(0, rows.shape[1], at_once):
                some = slice(part, part + at_once)
                drawn = shifted(points[rows[0, some], rows[1, some]], offsets[some])
                first, rest = drawn.split((candidates, fresh), 1)
                logit = sample_maps(maps[some], first).squeeze(1)
                chosen.append(torch.cat((nearest_zero(logit, first, kept), rest), 1))
        return torch.cat(chosen)


def _packed(costs: Tensor, present: Tensor, carry: Tensor | None) -> Tensor:
    """Everything that the host wants to know, in one flat float32 tensor."""
    parts = [costs.flatten(), present.flatten().float()]
    return torch.cat(parts if carry is None else [*parts, carry.detach().flatten().float()])


def _matched_maps(predictions: Sequence[Prediction], rows: Tensor) -> Tensor:
    """(R, 1, h, w) float32: the matched mask logits of all layers; the others are neither stacked nor
    cast.
    """
    per_layer = rows.shape[1] // len(predictions)  # the same in every layer: it depends on the crops alone
    picked = []
    for layer, prediction in enumerate(predictions):
        row = rows[:, layer * per_layer : (layer + 1) * per_layer]
        logits = prediction.mask_logits
        picked.append(logits.flatten(0, 1).index_select(0, row[1] * logits.shape[1] + row[2]))
    return torch.cat(picked).float().unsqueeze(1)


def _normalisers(
    num_matched: int,
    no_object: float,
    num_queries: int,
    like: Tensor,
    world_reduce: Callable[[Tensor], Tensor] | None,
) -> tuple[Tensor, Tensor]:
    """Segments and class weights of all ranks, divided by the number of ranks; both from host numbers,
    no wait.
    """
    numbers = np.array(
        [num_matched, num_matched + no_object * (num_queries - num_matched), 1.0], dtype=np.float32
    )
    sums = to_device(numbers, like.device)
    if world_reduce is not None:
        sums = world_reduce(sums)
    return (sums[0] / sums[2]).clamp(min=1.0), sums[1] / sums[2]


def linear_loss(logits: Tensor, crops: CropBatch) -> Tensor:
    """Mean cross entropy over the pixels that are not ignored; 0, with a graph, where all are.

    logits (B, C, h, w) of any float type, resized bilinearly to the crop before the comparison.
    """
    with torch.autocast(logits.device.type, enabled=False):
        size = crops.label_map.shape[1:]
        full = F.interpolate(logits.float(), size, mode="bilinear", align_corners=False)
        index = crops.label_map.long()
        ignored = index == VOID
        own = crops.labels.gather(1, index.masked_fill(ignored, 0).flatten(1)).view_as(index)
        target = own.masked_fill(ignored, -1)
        loss = F.cross_entropy(full, target, ignore_index=-1, reduction="sum")
        return loss / (target >= 0).sum().clamp(min=1)
