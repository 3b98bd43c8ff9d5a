"""From a batch of whole images to a loss: crop -> frozen features -> head -> loss. One class a kind of head.

Everything random is drawn from (seed, position or key, purpose) before it is applied, so a step depends on
its samples and the weights only, never on what ran before it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from maskshards.shards.augment.crop import CropDraws, CropSettings, crop, draw_crops
from maskshards.shards.batch import CropBatch, RaggedBatch
from maskshards.train.losses.host_copies import to_device
from maskshards.train.losses.matched_loss import MatchedLoss, linear_loss
from maskshards.train.losses.nonfinite import NonFiniteError
from maskshards.train.model.segmenter import Segmenter
from maskshards.train.trainer.guards import poisoned


@dataclass(frozen=True, slots=True)
class Losses:
    """One micro-step's loss, the crops that it was computed on, and the numbers that they were made with."""

    total: Tensor  # scalar, carries the graph
    parts: dict[str, Tensor]  # detached scalars by name, for the log
    crops: CropBatch
    draws: CropDraws
    carried: float | None = None  # what the objective was given to carry to the host


@dataclass(frozen=True)
class Forward:
    """The part that both heads share. `decoder` is the segmenter's, wrapped for gradient averaging where
    needed.
    """

    segmenter: Segmenter
    decoder: nn.Module
    crops: CropSettings
    seed: int
    device: torch.device  # where the batches already are
    autocast_dtype: torch.dtype | None  # None: compute as the weights are
    crops_by_position: bool = False  # an image that recurs within an epoch gets another crop each time

    def __call__(self, batch: RaggedBatch) -> tuple[CropBatch, CropDraws, Any]:
        """The crops of a batch, their numbers, and the decoder's answer: predictions (m2f) or class score
        maps (linear).
        """
        keyed = replace(batch, epochs=batch.positions) if self.crops_by_position else batch
        draws = draw_crops(keyed, self.seed, self.crops)
        crops = crop(batch, draws, self.crops)
        return crops, draws, self.decode(crops, self.decoder)

    def decode(self, crops: CropBatch, decoder: nn.Module) -> Any:
        """The answer of `decoder` (the segmenter's, wrapped or not) to crops."""
        drops = drops_on(self.device, self.segmenter, crops.positions, self.seed)
        with torch.autocast(self.device.type, self.autocast_dtype, enabled=self.autocast_dtype is not None):
            return decoder(crops.images, self.segmenter.features(crops.images), drops)

    def decode_alone(self, crops: CropBatch) -> Any:
        """The answer without any rank but this one."""
        return self.decode(crops, self.segmenter.decoder)


def drops_on(
    device: torch.device, segmenter: Segmenter, positions: Sequence[int], seed: int
) -> Tensor | None:
    """The decoder's drop factors, already on `device`: DistributedDataParallel would copy them there itself,
    and make the host wait for all that is queued.
    """
    drops = segmenter.decoder.draw_drops(positions, seed)
    return None if drops is None else to_device(drops.numpy(), device)


@dataclass(frozen=True)
class MaskObjective:
    """Ten supervised predictions, matched and compared with the crop's masks."""

    forward: Forward
    loss: MatchedLoss
    reduce: Callable[[Tensor], Tensor] | None  # sums over ranks; None in a single process
    dump_dir: Path | None = None  # for logits that cannot be matched, when looked at alone

    carries = True  # a device value to the host, with the matching costs

    def __call__(self, batch: RaggedBatch, carry: Tensor | None = None) -> Losses:
        """`carry` (1,) comes back as a number. A matching that cannot be done answers with a NaN loss, so
        that no rank takes the step: an error here would leave the other ranks waiting.
        """
        crops, draws, predictions = self.forward(batch)
        seed, reduce = self.forward.seed, self.reduce
        try:
            terms = self.loss(predictions, crops, seed=seed, world_reduce=reduce, carry=carry)
        except NonFiniteError:
            if reduce is not None:  # the other ranks wait for our share of the normalisers
                reduce(torch.zeros(3, device=crops.images.device))
            nan = torch.full((), torch.nan, device=crops.images.device)
            parts = dict.fromkeys(("mask", "dice", "class"), nan)
            return Losses(poisoned(predictions), parts, crops, draws)
        parts = {"mask": terms.mask, "dice": terms.dice, "class": terms.classify}
        means = {name: value.detach().mean() for name, value in parts.items()}
        carried = None if terms.carried is None else float(terms.carried[0])
        return Losses(terms.total, means, crops, draws, carried)

    def alone(self, crops: CropBatch) -> Tensor:
        """The loss of crops that were drawn before, on this rank only: for looking at what went wrong."""
        predictions = self.forward.decode_alone(crops)
        return self.loss(
            predictions, crops, seed=self.forward.seed, world_reduce=None, dump_dir=self.dump_dir
        ).total


@dataclass(frozen=True)
class PixelObjective:
    """Cross entropy of every labelled pixel, for the linear head."""

    forward: Forward
    weight: float
    reduce: Callable[[Tensor], Tensor] | None = None  # sums over ranks; None in a single process

    carries = False  # nothing of it goes to the host

    def __call__(self, batch: RaggedBatch, carry: Tensor | None = None) -> Losses:
        """`carry` stays where it is."""
        crops, draws, logits = self.forward(batch)
        loss = linear_loss(logits, crops, self.reduce)
        return Losses(self.weight * loss, {"cross_entropy": loss.detach()}, crops, draws)

    def alone(self, crops: CropBatch) -> Tensor:
        """As MaskObjective's."""
        return self.weight * linear_loss(self.forward.decode_alone(crops), crops)


Objective = MaskObjective | PixelObjective  # what the loop asks for losses
