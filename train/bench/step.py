"""A training step taken apart for measuring: the trainer's own pieces, with marks between them.

Two kinds: ours, and one put together like the reference (float32 pixel decoder, unfused deformable
attention, loss called layer by layer on one-hot float masks), so that a ratio compares two ways of
doing the same work in one process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from maskshards.shards.augment.crop import CropSettings, crop, draw_crops
from maskshards.shards.augment.targets import class_masks
from maskshards.shards.batch import CropBatch, RaggedBatch
from maskshards.train.capture.captured_step import CapturedStep, captured_step
from maskshards.train.config.schema import TrainConfig
from maskshards.train.losses.mask_classification_loss import MaskClassificationLoss
from maskshards.train.losses.settings import MASKS
from maskshards.train.model.compile import GRAPH, begin_step, compile_in_place, uses_cuda_graphs
from maskshards.train.model.heads.mask2former import MaskLoss
from maskshards.train.model.heads.prediction import Prediction
from maskshards.train.model.heads.registry import head_called
from maskshards.train.model.ops.deformable_attention import DeformableAttention
from maskshards.train.model.segmenter import Segmenter
from maskshards.train.optim.optimizer import build_optimizer, clip_gradients
from maskshards.train.tracking.phase_timer import PhaseClock, mark_after, phase_modules
from maskshards.train.trainer.build import autocast_dtype, build_model, crop_settings
from maskshards.train.trainer.step import Prepared, drops_on

Meanwhile = Callable[[], None]
Loss = Callable[..., Tensor]  # of a head's answer, crops and, if given, what to do before the host waits


@dataclass
class BenchStep:
    """All that one measured step needs."""

    config: TrainConfig
    segmenter: Segmenter
    optimizer: torch.optim.Optimizer
    loss: Loss
    crops: CropSettings
    device: torch.device
    autocast: torch.dtype | None
    norm: Tensor | None = None  # of the last step's gradient
    captured: CapturedStep | None = None  # what takes the place of model and loss, where steps are recorded
    looks_ahead: bool = False  # the next batch is prepared before the host waits, as the trainer does on CUDA
    prepared: Prepared | None = field(default=None, init=False)

    def step(self, batches: Iterator[RaggedBatch], clock: PhaseClock) -> Tensor:
        """One optimiser step from the next batch; the loss, still on the device."""
        decoder = self.segmenter.decoder
        clock.start()
        if uses_cuda_graphs(self.config.compile_mode) and self.norm is not None:
            float(self.norm)  # where the trainer's guard waits too
        begin_step(self.config.compile_mode)
        ready, self.prepared = self.prepared or self.prepare(batches, clock), None

        def meanwhile() -> None:
            clock.mark("loss")
            with suppress(StopIteration):  # after the last batch there is nothing to prepare
                self.prepared = self.prepare(batches, clock)

        total, learn = self.compare(ready, meanwhile if self.looks_ahead else None)
        clock.mark("loss")
        learn()
        clock.mark("backward")
        self.norm = clip_gradients(decoder, self.config.optimizer.gradient_clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=self.captured is None)
        clock.mark("optimiser")
        return total.detach()

    def compare(self, ready: Prepared, meanwhile: Meanwhile | None) -> tuple[Tensor, Callable[[], None]]:
        """The loss of a batch, and the call that adds its gradients."""
        crops, seed = ready.crops, self.config.seed
        if self.captured is not None:
            replayed = self.captured(crops, ready.num_labels, ready.features, seed=seed, meanwhile=meanwhile)
            return replayed.total, replayed.learn
        drops = drops_on(self.device, self.segmenter, crops.positions, seed)
        with self.autocasting():
            answer = self.segmenter.decoder(crops.images, ready.features, drops)
        total = self.loss(answer, crops, meanwhile)
        return total, total.backward

    def prepare(self, batches: Iterator[RaggedBatch], clock: PhaseClock) -> Prepared:
        """The next batch, cropped, with its frozen features."""
        batch = clock.wait_for(lambda: next(batches))
        batch = batch.to(self.device)
        clock.mark("copy")
        draws = draw_crops(batch, self.config.seed, self.crops)
        crops = crop(batch, draws, self.crops)
        clock.mark("crop")
        counts = tuple(map(len, batch.labels))
        if self.captured is not None:
            return Prepared(crops, draws, self.captured.features(crops.images), counts)
        with self.autocasting():
            return Prepared(crops, draws, self.segmenter.features(crops.images), counts)

    def autocasting(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None)

    def phases(self) -> dict[str, nn.Module]:
        """The modules whose forward ends a phase, by the phase's name."""
        return phase_modules(self.segmenter)

    def run(self, batches: Iterator[RaggedBatch], warmup: int, steps: int) -> dict[str, float]:
        """Median milliseconds of each phase and of the whole step."""
        clock = PhaseClock(self.device)
        remove_hooks = mark_after(clock, self.phases())
        try:
            for _ in range(warmup + steps):
                self.step(batches, clock)
        finally:
            remove_hooks()
        return clock.medians_ms(warmup)


def build_bench_step(config: TrainConfig, device: torch.device, *, reference: bool = False) -> BenchStep:
    """The model of `config` with a fresh head, its optimiser and its loss, all on `device`.

    `reference`: what the reference has no switch for is off, whatever `config` says.
    """
    if reference:
        config = replace(
            config, precision="reference", fused_kernels=False, compile="none", compile_mode="default",
            activation_checkpointing=False, m2f_train=replace(config.m2f_train, costs_from=MASKS),
        )  # fmt: skip
    segmenter = build_model(config, device)
    for module in segmenter.decoder.modules():
        if reference and isinstance(module, DeformableAttention):
            module.resample = False
    segmenter.decoder.train()
    compile_in_place(segmenter, config.compile, mode=config.compile_mode)
    optimizer = build_optimizer(segmenter.decoder, config.optimizer)
    loss = build_loss(config, device, reference)
    ahead = device.type == "cuda" and not reference and not uses_cuda_graphs(config.compile_mode)
    bench = BenchStep(
        config, segmenter, optimizer, loss, crop_settings(config), device, autocast_dtype(config, device),
        looks_ahead=ahead,
    )  # fmt: skip
    return with_graphs(bench) if config.compile_mode == GRAPH else bench


def with_graphs(bench: BenchStep) -> BenchStep:
    """The same step, recorded."""
    loss = head_called(bench.config.decoder_head.type).loss(bench.config)
    captured = captured_step(bench.segmenter, loss.matched, bench.autocasting, bench.device)
    return replace(bench, captured=captured)


def build_loss(config: TrainConfig, device: torch.device, reference: bool) -> Loss:
    """The loss as a function of the head's answer and crops."""
    loss, wanted = head_called(config.decoder_head.type).loss(config), config.m2f_train
    if reference and isinstance(loss, MaskLoss):
        layered = MaskClassificationLoss(
            wanted.num_points, wanted.oversample_ratio, wanted.importance_sample_ratio,
            wanted.mask_coefficient, wanted.dice_coefficient, wanted.class_coefficient,
            config.decoder_head.classes, wanted.no_object_coefficient,
        ).to(device)  # fmt: skip
        return lambda predictions, crops, _=None: layer_by_layer(layered, predictions, crops)

    def total(answer: Any, crops: CropBatch, meanwhile: Meanwhile | None = None) -> Tensor:
        return loss(answer, crops, seed=config.seed, reduce=None, meanwhile=meanwhile).total

    return total


def layer_by_layer(
    loss: MaskClassificationLoss, predictions: Sequence[Prediction], crops: CropBatch
) -> Tensor:
    """The reference's way: dense float masks of every class, then one call a layer."""
    targets = [{"masks": t["masks"].float(), "labels": t["labels"]} for t in class_masks(crops)]
    terms = {
        f"{name}_{layer}": value
        for layer, p in enumerate(predictions)
        for name, value in loss(p.mask_logits, targets, p.class_logits).items()
    }
    return loss.loss_total(terms, lambda *_, **__: None)
