"""From a batch of whole images to a loss: crop -> frozen features -> head -> loss.

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
from maskshards.train.capture.captured_step import CapturedStep
from maskshards.train.losses.host_copies import to_device
from maskshards.train.model.heads.head import HeadLoss
from maskshards.train.model.segmenter import Segmenter


@dataclass(frozen=True, slots=True)
class Losses:
    """One micro-step's loss, the crops that it was computed on, and the numbers that they were made with."""

    total: Tensor  # scalar, carries the graph unless `learn` is there
    parts: dict[str, Tensor]  # detached scalars by name, for the log
    crops: CropBatch
    draws: CropDraws
    flag_on_host: float | None = None  # the `flag` that was handed in, as a number
    learn: Callable[[], None] | None = None  # adds the gradients, where the loss carries no graph

    def backward(self, weight: float) -> None:
        """Add this micro-step's gradients, `weight` of them, to the parameters'.

        A recorded step knows its weight.
        """
        if self.learn is not None:
            self.learn()
        else:
            (self.total * weight).backward()


@dataclass(frozen=True, slots=True)
class Prepared:
    """A batch as far as no trained weight is asked: crops and frozen features, queued on the device."""

    crops: CropBatch
    draws: CropDraws
    features: tuple[Tensor, ...]  # as Segmenter.features gives them
    num_labels: tuple[int, ...]  # of each whole image

    def __len__(self) -> int:
        return len(self.crops.positions)


@dataclass(frozen=True)
class Objective:
    """What turns a batch into a loss."""

    segmenter: Segmenter
    decoder: nn.Module  # the segmenter's, wrapped for gradient averaging where needed
    loss: HeadLoss
    crop_settings: CropSettings
    seed: int
    device: torch.device  # where the batches already are
    autocast_dtype: torch.dtype | None  # None: compute as the weights are
    crops_by_position: bool = False  # an image that recurs within an epoch gets another crop each time
    reduce: Callable[[Tensor], Tensor] | None = None  # sums over ranks; None in a single process
    dump_dir: Path | None = None  # for what cannot be compared, when looked at alone
    captured: CapturedStep | None = None  # what takes the place of calls, where steps are recorded

    def __call__(
        self,
        batch: RaggedBatch | Prepared,
        flag: Tensor | None = None,
        meanwhile: Callable[[], None] | None = None,
    ) -> Losses:
        """The loss of a batch; `flag` (1,) comes back as a number where the head's loss has `brings_flag`.

        `meanwhile` is called once where the head's loss is about to wait for the device; what it queues runs
        while the host waits, and works on the answer.
        """
        ready = batch if isinstance(batch, Prepared) else self.prepare(batch)
        if self.captured is not None:
            replayed = self.captured(
                ready.crops, ready.num_labels, ready.features,
                seed=self.seed, reduce=self.reduce, flag=flag, meanwhile=meanwhile,
            )  # fmt: skip
            figures = replayed.total, replayed.parts, ready.crops, ready.draws, replayed.flag_on_host
            return Losses(*figures, replayed.learn)
        answer = self.answer(ready.crops, self.decoder, ready.features)
        found = self.loss(
            answer, ready.crops, seed=self.seed, reduce=self.reduce, flag=flag, meanwhile=meanwhile
        )
        return Losses(found.total, found.parts, ready.crops, ready.draws, found.flag_on_host)

    def prepare(self, batch: RaggedBatch) -> Prepared:
        """Crops and frozen features: a function of the batch alone, whenever it is computed."""
        crops, draws = self.crop(batch)
        counts = tuple(map(len, batch.labels))
        if self.captured is not None:
            return Prepared(crops, draws, self.captured.features(crops.images), counts)
        with self.autocast():
            return Prepared(crops, draws, self.segmenter.features(crops.images), counts)

    def alone(self, crops: CropBatch) -> Tensor:
        """The loss of crops that were drawn before, on this rank only: for looking at what went wrong."""
        with self.autocast():
            features = self.segmenter.features(crops.images)
        answer = self.answer(crops, self.segmenter.decoder, features)
        return self.loss.alone(answer, crops, seed=self.seed, dump_dir=self.dump_dir)

    def crop(self, batch: RaggedBatch) -> tuple[CropBatch, CropDraws]:
        """The crops of a batch, and the numbers that they are made with."""
        keyed = replace(batch, epochs=batch.positions) if self.crops_by_position else batch
        draws = draw_crops(keyed, self.seed, self.crop_settings)
        return crop(batch, draws, self.crop_settings), draws

    def answer(self, crops: CropBatch, decoder: nn.Module, features: tuple[Tensor, ...]) -> Any:
        """What `decoder`, the segmenter's, wrapped or not, makes of frozen features."""
        drops = drops_on(self.device, self.segmenter, crops.positions, self.seed)
        with self.autocast():
            return decoder(crops.images, features, drops)

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.autocast_dtype, enabled=self.autocast_dtype is not None)


def drops_on(
    device: torch.device, segmenter: Segmenter, positions: Sequence[int], seed: int
) -> Tensor | None:
    """The decoder's drop factors, already on `device`.

    DistributedDataParallel would copy them there itself, and make the host wait for all that is queued.
    """
    drops = segmenter.decoder.draw_drops(positions, seed)
    return None if drops is None else to_device(drops.numpy(), device)
