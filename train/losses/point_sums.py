"""The sums over points that the matched loss is made of, in plain PyTorch.

`point_sums_fused` has the same in fused kernels.

Letters: L layer, B image, Q query, K label index of an image, R matched row, P point.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from maskshards.shards.batch import VOID
from maskshards.train.losses.point_sampling import (
    nearest_zero,
    random_points,
    row_offsets,
    sample_maps,
    sample_products,
    shifted,
)
from maskshards.train.losses.point_targets import padded, targets_of_images, targets_of_rows
from maskshards.train.losses.settings import LossSettings
from maskshards.train.model.heads.prediction import Prediction

CANDIDATES_AT_ONCE = 2**24  # held at a time while the uncertain ones are chosen: about 0.5 GB


@dataclass(frozen=True, slots=True)
class PairSums:
    """Of every query with every mask of its image, over the image's points; float32."""

    with_logit: Tensor  # (L, B, Q, K) logit * target
    with_sigmoid: Tensor  # (L, B, Q, K) sigmoid * target
    softplus: Tensor  # (L, B, Q)
    sigmoid: Tensor  # (L, B, Q)
    target: Tensor  # (L, B, K)
    counted: Tensor  # (L, B) points, or their weight outside void where void is ignored


@dataclass(frozen=True, slots=True)
class RowSums:
    """Of every matched row, over its points; (R,) float32. The first three carry a graph."""

    entropy: Tensor  # cross entropy of logit and target
    overlap: Tensor  # sigmoid * target
    sigmoid: Tensor
    target: Tensor
    counted: Tensor


@dataclass(frozen=True, slots=True)
class Rows:
    """The matched rows: which map, of which image, against which of its labels, at which points."""

    maps: Tensor  # (R, h, w) mask logits, with a graph
    place: Tensor  # (4, R) int64: layer, image, query, label index
    classes: Tensor  # (R,) int64 class ids


class Sampler(Protocol):
    """What the loss asks of either kind: sums over its points, by tensors or by kernels."""

    @abstractmethod
    def pair_sums(self, predictions: Sequence[Prediction]) -> PairSums:
        """Of all queries with all masks of their image, at the points of the matching costs."""

    @abstractmethod
    def row_sums(self, rows: Rows) -> RowSums:
        """Of the matched rows, at their uncertain and their fresh points."""


class PlainSampler:
    """Points, samples and products as tensors.

    owner_map (B, H, W) int16, keys (2, L, B, 2) of the matching costs and of the matched rows.
    """

    def __init__(self, owner_map: Tensor, num_labels: int, keys: Tensor, settings: LossSettings) -> None:
        self.settings, self.keys, self.num_labels = settings, keys, num_labels
        self.bordered = padded(owner_map)

    def pair_sums(self, predictions: Sequence[Prediction]) -> PairSums:
        points = random_points(self.keys[0], self.settings.num_points)
        logits = logits_at(predictions, points)
        layers = [self._layer_sums(each, w) for each, w in zip(logits, points, strict=True)]
        return PairSums(*(torch.stack(same) for same in zip(*layers, strict=True)))

    def _layer_sums(self, logit: Tensor, points: Tensor) -> tuple[Tensor, ...]:
        """The fields of PairSums for one layer; logit (B, Q, P) at points (B, P, 2)."""
        target, void = targets_of_images(self.bordered, self.num_labels, points)  # (B, K, P), (B, P)
        softplus, sigmoid = F.softplus(logit), logit.sigmoid()
        counted = torch.full((len(points),), float(self.settings.num_points), device=points.device)
        if self.settings.ignore_void:
            weight = 1 - void
            softplus, sigmoid = softplus * weight[:, None], sigmoid * weight[:, None]
            counted = weight.sum(-1)
        columns = target.transpose(1, 2)
        products = logit @ columns, sigmoid @ columns
        return (*products, softplus.sum(-1), sigmoid.sum(-1), target.sum(-1), counted)

    def row_sums(self, rows: Rows) -> RowSums:
        maps, (_, images, _, wanted) = rows.maps.float().unsqueeze(1), rows.place
        points = self._row_points(maps.detach(), rows)
        target = targets_of_rows(self.bordered, images, wanted, points)
        logit = sample_maps(maps, points).squeeze(1)  # (R, P)
        softplus, sigmoid = F.softplus(logit), logit.sigmoid()
        counted = torch.full((len(maps),), float(self.settings.num_points), device=points.device)
        if self.settings.ignore_void:
            weight = 1 - targets_of_rows(self.bordered, images, torch.full_like(wanted, VOID), points)
            softplus, sigmoid = softplus * weight, sigmoid * weight
            counted = weight.sum(1)
        entropy = (softplus - logit * target).sum(1)
        return RowSums(entropy, (sigmoid * target).sum(1), sigmoid.sum(1), target.sum(1), counted)

    def _row_points(self, maps: Tensor, rows: Rows) -> Tensor:
        """(R, P, 2): the least certain of each matched row's candidates, then fresh ones."""
        candidates, kept, fresh = self.settings.point_counts
        layer, image = rows.place[0], rows.place[1]
        points = random_points(self.keys[1], candidates + fresh)
        offsets = row_offsets(self.keys[1][layer, image], rows.classes)
        chosen = [points.new_zeros((0, self.settings.num_points, 2))]
        at_once = max(1, CANDIDATES_AT_ONCE // candidates)
        with torch.no_grad():
            for part in range(0, len(maps), at_once):
                some = slice(part, part + at_once)
                drawn = shifted(points[layer[some], image[some]], offsets[some])
                first, rest = drawn.split((candidates, fresh), 1)
                logit = sample_maps(maps[some], first).squeeze(1)
                chosen.append(torch.cat((nearest_zero(logit, first, kept), rest), 1))
        return torch.cat(chosen)


def dice_loss(overlap: Tensor, area: Tensor) -> Tensor:
    """Dice loss from sums over points, of the products of two masks and of both masks added up.

    1 is added to each, so that two empty masks are alike: Mask2Former's own form.
    """
    return 1 - (2 * overlap + 1) / (area + 1)


def logits_at(predictions: Sequence[Prediction], points: Tensor) -> Iterator[Tensor]:
    """Layer by layer mask logits (B, Q, P) float32 at points (L, B, P, 2).

    Sampled from the masks, or from the mask features where there are none.
    """
    product = predictions[0].product
    if predictions[0].masks is None and product is not None:
        return (each.float() for each in sample_products(product.vectors, product.features, points))
    pairs = zip(predictions, points, strict=True)
    return (sample_maps(prediction.mask_logits.float(), drawn) for prediction, drawn in pairs)
