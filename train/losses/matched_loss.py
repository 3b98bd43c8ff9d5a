"""The matched loss of all supervised layers and images at once, and the linear head's loss.

Equal to calling `mask_classification_loss` layer by layer on the same points, but without dense masks,
and with one copy to the host (costs), one copy back (matches) and one all-reduce (normalisers) a call,
whatever the number of layers and images. All arithmetic is float32. Mask2Former: Cheng et al. 2022,
arXiv 2112.01527.

Letters: L layer, B image, Q query, C class, K label index of an image, R matched row, P point.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from maskshards.shards.batch import VOID, CropBatch
from maskshards.train.losses.gather_matched import matched_maps
from maskshards.train.losses.host_copies import HostCopy, to_device
from maskshards.train.losses.matcher import Assigner, CostWeights, matching_costs
from maskshards.train.losses.matches import Matches, Room, matches_of, packed, unpacked
from maskshards.train.losses.nonfinite import check_costs
from maskshards.train.losses.point_sampling import MATCH, ROWS, point_keys
from maskshards.train.losses.point_sums import PlainSampler, Rows, RowSums, Sampler, dice_loss
from maskshards.train.losses.point_targets import labels_present
from maskshards.train.losses.settings import LossSettings
from maskshards.train.model.heads.prediction import Prediction
from maskshards.train.model.ops.fused import kernels_fit


@dataclass(frozen=True, slots=True)
class LossTerms:
    """What one micro-step's loss is made of."""

    mask: Tensor  # (L,) binary cross entropy, unweighted, already divided by the global number of segments
    dice: Tensor  # (L,)
    classify: Tensor  # (L,) cross entropy of the classes
    total: Tensor  # scalar: the weighted sum over terms and layers; carries the graph
    num_segments: int = 0  # of this rank's crops: matched rows of one layer
    flags_on_host: np.ndarray | None = None  # the `flags` values of this call, now on the host


class MatchedLoss:
    """Matches and compares all layers' predictions with the crops. Holds no tensors and no generator.

    `threads` solve assignments, on each rank. `fused` takes the Triton kernels where they can run.
    """

    def __init__(
        self, settings: LossSettings, num_classes: int, *, threads: int = 4, fused: bool = True
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
        that it queues runs while the host waits and matches. Raises ValueError for logits of other images or
        classes, and NonFiniteError when a matching cost is not finite, after writing that image and its
        logits into `dump_dir`, if one is given.
        """
        check_predictions(predictions, crops, self.num_classes)
        device, inputs = crops.owner_map.device, (crops.owner_map, crops.labels)
        keys = to_device(self.keys(seed, crops.positions, len(predictions)), device)
        copy = HostCopy(self.asked(predictions, *inputs, keys, flags))
        if meanwhile is not None:
            meanwhile()
        shape = (len(predictions), *predictions[0].class_logits.shape[:2], crops.labels.shape[1])
        matches, flags_on_host = self.matches(copy.wait(), shape, predictions, crops, dump_dir=dump_dir)
        rows = to_device(matches.rows, device)
        shares = normalisers(to_device(matches.numbers, device), world_reduce)
        terms = self.terms(predictions, *inputs, keys, rows, shares, matches.most)
        return replace(
            terms,
            num_segments=matches.num_segments,
            flags_on_host=None if flags is None else flags_on_host,
        )

    def keys(self, seed: int, positions: Sequence[int], num_layers: int) -> np.ndarray:
        """(2, L, B, 2) int64: of the points of the costs and of the matched rows."""
        return np.stack([point_keys(seed, positions, num_layers, use) for use in (MATCH, ROWS)])

    @torch.no_grad()
    def asked(
        self,
        predictions: Sequence[Prediction],
        owner_map: Tensor,
        labels: Tensor,
        keys: Tensor,
        flags: Tensor | None,
    ) -> Tensor:
        """What the host has to know, in one flat tensor: costs, labels that the crops hold, `flags`.

        Its size hangs on shapes alone, and nothing in here waits. So with `terms`.
        """
        with torch.autocast(owner_map.device.type, enabled=False):
            sampler = self._sampler(predictions, owner_map, labels, keys)
            costs = matching_costs(predictions, labels, sampler.pair_sums(predictions), self._weights)
            return packed(costs, labels_present(owner_map, labels.shape[1]), flags)

    def matches(
        self,
        values: np.ndarray,
        shape: tuple[int, ...],
        predictions: Sequence[Prediction],
        crops: CropBatch,
        *,
        room: Room | None = None,
        dump_dir: Path | None = None,
    ) -> tuple[Matches, np.ndarray]:
        """The matched rows from what was `asked`, costs of `shape` (L, B, Q, K), and the flags.

        Work of the host. Raises NonFiniteError as a call of the loss does; `predictions` are looked at then.
        """
        costs, present, flags_on_host = unpacked(values, shape)
        check_costs(costs, predictions, crops, dump_dir)
        matched = self._assign(costs, present)
        return matches_of(matched, shape, self.settings.no_object_coefficient, room), flags_on_host

    def terms(
        self,
        predictions: Sequence[Prediction],
        owner_map: Tensor,
        labels: Tensor,
        keys: Tensor,
        rows: Tensor,
        shares: Tensor,
        most: int,
    ) -> LossTerms:
        """The terms of matched `rows` (6, R), `most` of an image; `shares` (2,) are the `normalisers`."""
        with torch.autocast(owner_map.device.type, enabled=False):
            sampler = self._sampler(predictions, owner_map, labels, keys)
            return self._terms(predictions, labels, rows, shares, most, sampler)

    def _sampler(
        self, predictions: Sequence[Prediction], owner_map: Tensor, labels: Tensor, keys: Tensor
    ) -> Sampler:
        num_labels = labels.shape[1]
        inputs = owner_map, num_labels, keys, self.settings
        if self.fused and loss_kernels_fit(predictions[0].source, num_labels):
            from maskshards.train.losses.point_sums_fused import FusedSampler  # needs Triton

            return FusedSampler(*inputs)
        return PlainSampler(*inputs)

    def _terms(
        self,
        predictions: Sequence[Prediction],
        labels: Tensor,
        rows: Tensor,
        shares: Tensor,
        most: int,
        sampler: Sampler,
    ) -> LossTerms:
        settings, num_layers = self.settings, len(predictions)
        classes = labels[rows[1], rows[3]]
        class_logits = torch.stack([p.class_logits for p in predictions]).float()  # (L, B, Q, C + 1)
        matched = rows[5] < class_logits.shape[:3].numel()  # the others fill up
        maps = matched_maps(predictions, rows[:4], rows[4], most)
        found = sampler.row_sums(Rows(maps, rows[:4], classes))
        mask, dice = (
            class_logits.new_zeros(num_layers).index_add(0, rows[0], torch.where(matched, each, 0.0))
            / shares[0]
            for each in mask_terms(found)
        )
        classify = self._class_sums(class_logits, rows[5], classes) / shares[1]
        total = (
            settings.mask_coefficient * mask.sum()
            + settings.dice_coefficient * dice.sum()
            + settings.class_coefficient * classify.sum()
        )
        return LossTerms(mask, dice, classify, total)

    def _class_sums(self, class_logits: Tensor, places: Tensor, classes: Tensor) -> Tensor:
        """(L,) cross entropy summed over images and queries, queries without a mask weighing less."""
        shape = class_logits.shape[:3]
        target = torch.full((shape.numel() + 1,), self.num_classes, device=class_logits.device)
        target = target.index_copy(0, places, classes)[:-1]  # the last one is written by what fills up
        loss = F.cross_entropy(class_logits.flatten(0, 2), target, reduction="none")
        no_object = self.settings.no_object_coefficient
        return torch.where(target == self.num_classes, loss * no_object, loss).view(shape).sum((1, 2))


def check_predictions(predictions: Sequence[Prediction], crops: CropBatch, num_classes: int) -> None:
    """ValueError for logits or crops of other images or classes than the loss compares. No sync."""
    if not predictions:
        raise ValueError("no predictions; expected one for each supervised layer")
    images, largest = len(crops.owner_map), crops.largest_class_id
    for layer, each in enumerate(predictions):
        classes, maps = tuple(each.class_logits.shape), tuple(each.source.shape)
        if len(classes) != 3 or (classes[0], classes[2]) != (images, num_classes + 1):
            raise ValueError(
                f"layer {layer}: class_logits are {classes}, expected ({images}, queries, {num_classes + 1}):"
                f" an image each, and columns for {num_classes} classes and for no object"
            )
        if len(maps) != 4 or maps[0] != images or (each.masks is not None and maps[1] != classes[1]):
            raise ValueError(
                f"layer {layer}: mask logits are {maps}, expected ({images}, {classes[1]}, height, width)"
            )
    if largest is not None and largest >= num_classes:
        raise ValueError(f"the crops show class {largest}, and the loss knows 0 to {num_classes - 1}")


def loss_kernels_fit(maps: Tensor, num_labels: int) -> bool:
    """Whether the fused kernels take these logits or features, and there is a label to compare with."""
    return num_labels > 0 and kernels_fit(maps)


def mask_terms(sums: RowSums) -> tuple[Tensor, Tensor]:
    """(R,) mean binary cross entropy and (R,) dice loss of the matched rows."""
    entropy = sums.entropy / sums.counted.clamp(min=1.0)
    return entropy, dice_loss(sums.overlap, sums.sigmoid + sums.target)


def normalisers(numbers: Tensor, world_reduce: Callable[[Tensor], Tensor] | None) -> Tensor:
    """(2,) segments and class weights of all ranks, divided by the number of ranks, of `Matches.numbers`."""
    sums = numbers if world_reduce is None else world_reduce(numbers)
    return torch.stack(((sums[0] / sums[2]).clamp(min=1.0), sums[1] / sums[2]))


def linear_loss(
    logits: Tensor, crops: CropBatch, world_reduce: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """Mean cross entropy over the pixels that are not ignored; 0, with a graph, where all are.

    logits (B, C, h, w) of any float type, resized bilinearly to the crop before the comparison.
    `world_reduce` sums over all ranks (None in a single process): the mean is then over the pixels of all,
    times the number of ranks, so that the average over ranks is what one process would have.
    """
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
