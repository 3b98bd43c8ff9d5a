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

from maskshards.shards.batch import VOID, CropBatch
from maskshards.train.losses.gather_matched import matched_maps, row_slots
from maskshards.train.losses.host_copies import HostCopy, to_device
from maskshards.train.losses.mask_classification_loss import MaskClassificationLoss
from maskshards.train.losses.matcher import Assigner, CostWeights, matching_costs
from maskshards.train.losses.nonfinite import check_costs
from maskshards.train.losses.point_sampling import MATCH, ROWS, point_keys
from maskshards.train.losses.point_sums import PlainSampler, Rows, RowSums, Sampler
from maskshards.train.losses.point_targets import labels_present
from maskshards.train.losses.settings import LossSettings
from maskshards.train.model.heads.prediction import Prediction
from maskshards.train.model.ops.deformable_fused import kernels_fit

__all__ = ["LossSettings", "LossTerms", "MaskClassificationLoss", "MatchedLoss", "linear_loss"]


@dataclass(frozen=True, slots=True)
class LossTerms:
    """What one micro-step's loss is made of."""

    mask: Tensor  # (L,) binary cross entropy, unweighted, already divided by the global number of segments
    dice: Tensor  # (L,)
    classify: Tensor  # (L,) cross entropy of the classes
    total: Tensor  # scalar: the weighted sum over terms and layers; carries the graph
    num_segments: int  # of this rank's crops: matched rows of one layer
    flags_on_host: np.ndarray | None = None  # the `flags` values of this call, now on the host


class MatchedLoss:
    """Matches and compares all layers' predictions with the crops. Holds no tensors and no generator.

    `fused` takes the Triton kernels where they can run.
    """

    def __init__(
        self,
        settings: LossSettings,
        num_classes: int,
        *,
        threads: int = 4,
        fused: bool = True,
    ) -> None:
        self.settings, self.num_classes, self.fused = settings, num_classes, fused
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
        flags: Tensor | None = None,
        meanwhile: Callable[[], None] | None = None,
        dump_dir: Path | None = None,
    ) -> LossTerms:
        """The terms of this micro-step.

        `world_reduce` sums a small tensor over all ranks (None in a single process), so that R ranks
        which average their gradients train as one process with all their images would. `flags` (n,):
        device values, flags for instance, that travel to the host with the costs instead of waiting for
        a copy of their own. `meanwhile` is called when that copy is queued, before it is waited for: work
        that it queues runs while the host waits and matches. Raises NonFiniteError when a matching cost is
        not finite, after writing that image and its logits into `dump_dir`, if one is given.
        """
        with torch.autocast(crops.owner_map.device.type, enabled=False):
            device = crops.owner_map.device
            num_layers = len(predictions)
            keys = to_device(
                np.stack([point_keys(seed, crops.positions, num_layers, use) for use in (MATCH, ROWS)]),
                device,
            )
            sampler = self._sampler(predictions, crops, keys)
            with torch.no_grad():
                costs = matching_costs(
                    predictions, crops.labels, sampler.pair_sums(predictions), self._weights
                )
                copy = HostCopy(_packed(costs, labels_present(crops.owner_map, crops.labels.shape[1]), flags))
            if meanwhile is not None:
                meanwhile()
            host_costs, present, flags_on_host = _unpacked(copy.wait(), costs.shape)
            check_costs(host_costs, predictions, crops, dump_dir)
            rows = self._assign(host_costs, present)
            terms = self._terms(predictions, crops, rows, sampler, world_reduce)
            return terms if flags is None else replace(terms, flags_on_host=flags_on_host)

    def _sampler(self, predictions: Sequence[Prediction], crops: CropBatch, keys: Tensor) -> Sampler:
        num_labels = crops.labels.shape[1]
        inputs = crops.owner_map, num_labels, keys, self.settings
        if self.fused and loss_kernels_fit(predictions[0].mask_logits, num_labels):
            from maskshards.train.losses.point_sums_fused import FusedSampler  # needs Triton

            return FusedSampler(*inputs)
        return PlainSampler(*inputs)

    def _terms(
        self,
        predictions: Sequence[Prediction],
        crops: CropBatch,
        matches: np.ndarray,
        sampler: Sampler,
        world_reduce: Callable[[Tensor], Tensor] | None,
    ) -> LossTerms:
        settings, num_layers = self.settings, len(predictions)
        slots, most = row_slots(matches[1])
        sent = to_device(np.concatenate((matches, slots[None])), crops.labels.device)  # one copy
        rows = sent[:4]
        classes = crops.labels[rows[1], rows[3]]
        class_logits = torch.stack([p.class_logits for p in predictions]).float()  # (L, B, Q, C + 1)
        num_matched = rows.shape[1] // num_layers
        num_queries = class_logits.shape[1] * class_logits.shape[2]
        segments, weight = _normalisers(
            num_matched, settings.no_object_coefficient, num_queries, class_logits, world_reduce
        )
        maps = matched_maps(predictions, rows, sent[4], most)
        found = sampler.row_sums(Rows(maps, rows, classes))
        mask, dice = (
            class_logits.new_zeros(num_layers).index_add(0, rows[0], each) / segments
            for each in mask_terms(found)
        )
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


def loss_kernels_fit(mask_logits: Tensor, num_labels: int) -> bool:
    """Whether the fused kernels take these logits: where Triton runs, not float64, and some label to
    compare with.
    """
    return num_labels > 0 and kernels_fit(mask_logits)


def mask_terms(sums: RowSums) -> tuple[Tensor, Tensor]:
    """(R,) mean binary cross entropy and (R,) dice loss of the matched rows."""
    area = sums.sigmoid + sums.target
    return sums.entropy / sums.counted.clamp(min=1.0), 1 - (2 * sums.overlap + 1) / (area + 1)


def _packed(costs: Tensor, present: Tensor, flags: Tensor | None) -> Tensor:
    """Everything that the host wants to know, in one flat float32 tensor."""
    parts = [costs.flatten(), present.flatten().float()]
    return torch.cat(parts if flags is None else [*parts, flags.detach().flatten().float()])


def _unpacked(values: np.ndarray, shape: torch.Size) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Costs (L, B, Q, K), which labels are present (B, K) bool, and the flags."""
    _, num_images, _, num_labels = shape
    costs, present, flags = np.split(values, [math.prod(shape), math.prod(shape) + num_images * num_labels])
    return costs.reshape(shape), present.reshape(num_images, num_labels) > 0, flags


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


def linear_loss(
    logits: Tensor, crops: CropBatch, world_reduce: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """Mean cross entropy over the pixels that are not ignored; 0, with a graph, where all are.

    logits (B, C, h, w) of any float type, resized bilinearly to the crop before the comparison.
    `world_reduce` sums over all ranks (None in a single process): the mean is then over the pixels of all,
    times the number of ranks, so that the average over ranks is what one process would have.
    """
    with torch.autocast(logits.device.type, enabled=False):
        size = crops.owner_map.shape[1:]
        full = F.interpolate(logits.float(), size, mode="bilinear", align_corners=False)
        index = crops.owner_map.long()
        ignored = index == VOID
        own = crops.labels.gather(1, index.masked_fill(ignored, 0).flatten(1)).view_as(index)
        target = own.masked_fill(ignored, -1)
        loss = F.cross_entropy(full, target, ignore_index=-1, reduction="sum")
        labelled = (target >= 0).sum()
        if world_reduce is None:
            return loss / labelled.clamp(min=1)
        labelled, num_ranks = world_reduce(torch.stack((labelled, torch.ones_like(labelled))))
        return loss * num_ranks / labelled.clamp(min=1)
