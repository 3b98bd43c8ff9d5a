"""One piece of the step done in two ways, in turns on the same random inputs: ratios of one moment."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch
from torch import Tensor

from maskshards.shards.augment.crop import crop, draw_crops
from maskshards.shards.batch import CropBatch
from maskshards.train.bench.step import build_loss
from maskshards.train.bench.synthetic import synthetic_batch
from maskshards.train.config.schema import TrainConfig
from maskshards.train.model.heads.prediction import Prediction
from maskshards.train.model.ops.deformable_attention import deformable_attention, reference_points
from maskshards.train.tracking.phase_timer import PhaseClock
from maskshards.train.trainer.build import autocast_dtype, crop_settings

NUM_LAYERS = 10  # supervised predictions of the query decoder
HEADS, POINTS = 16, 4  # of the pixel decoder's attention
SPREAD_PX = 3.0  # how far its points lie from their queries
STRIDES = (32, 16, 8)  # of its levels

Work = Callable[[], Tensor]  # a forward pass that ends in a scalar with a graph


def in_turns(
    works: dict[str, Callable[[int], Work]], device: torch.device, warmup: int, steps: int
) -> dict[str, float]:
    """Median forward, backward and whole ms of each work, and the median ratio of the second to the first.

    Each entry of `works` makes the work of a turn from its number; making it is not measured.
    """
    figures: dict[str, list[float]] = {}
    for turn in range(warmup + steps):
        for name, make in works.items():
            work, clock = make(turn), PhaseClock(device)
            clock.start()
            total = work()
            clock.mark("forward")
            total.backward()
            clock.mark("backward")
            if turn >= warmup:
                for phase, value in clock.medians_ms(0).items():
                    figures.setdefault(f"{name} {phase}".replace("step", "both"), []).append(value)
    medians = {name: statistics.median(values) for name, values in figures.items()}
    first, second = works
    for phase in ("forward", "backward", "both"):
        pairs = zip(figures[f"{first} {phase}"], figures[f"{second} {phase}"], strict=True)
        medians[f"{phase} ratio"] = statistics.median(theirs / ours for ours, theirs in pairs)
    return medians


def loss_ms(config: TrainConfig, device: torch.device, warmup: int, steps: int) -> dict[str, float]:
    """The matched loss and the loss called layer by layer on dense masks."""
    batch = synthetic_batch(config.bs, config.decoder_head.classes).to(device)
    settings = crop_settings(config)
    crops = crop(batch, draw_crops(batch, config.seed, settings), settings)

    def maker(reference: bool) -> Callable[[int], Work]:
        loss = build_loss(config, device, reference)

        def make(turn: int) -> Work:
            predictions = random_predictions(config, crops, turn)
            return lambda: loss(predictions, crops)

        return make

    return in_turns({"matched": maker(False), "reference": maker(True)}, device, warmup, steps)


def random_predictions(config: TrainConfig, crops: CropBatch, seed: int) -> list[Prediction]:
    """What the query decoder would give: class and mask logits of every layer, with gradients."""
    device = crops.images.device
    generator = torch.Generator(device).manual_seed(seed)
    head, (batch, _, height, width) = config.decoder_head, crops.images.shape
    dtype = autocast_dtype(config, device) or torch.float32

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device).to(dtype).requires_grad_()

    sizes = (
        (batch, head.num_queries, head.classes + 1),
        (batch, head.num_queries, height // 4, width // 4),
    )
    return [Prediction(draw(*sizes[0]), draw(*sizes[1])) for _ in range(NUM_LAYERS)]


def attention_ms(config: TrainConfig, device: torch.device, warmup: int, steps: int) -> dict[str, float]:
    """One deformable attention of the pixel decoder, fused (where the kernels can run) and plain.

    Plain: float32 samples that autograd keeps, as the reference computes it.
    """
    height, width = config.transforms.train.crop_size or (512, 512)
    shapes = tuple((height // stride, width // stride) for stride in STRIDES)
    places, channels = sum(h * w for h, w in shapes), config.decoder_head.hidden_dim // HEADS
    dtype = autocast_dtype(config, device) or torch.float32
    generator = torch.Generator(device).manual_seed(0)
    sizes = torch.tensor([(w, h) for h, w in shapes], device=device, dtype=torch.float32)
    centres = reference_points(shapes, device)

    def maker(fused: bool) -> Callable[[int], Work]:
        def make(_: int) -> Work:
            grid = (config.bs, places, HEADS, len(shapes), POINTS)
            shape = config.bs, places, HEADS, channels
            value = torch.randn(shape, generator=generator, device=device).to(dtype)
            offsets_px = SPREAD_PX * torch.randn(*grid, 2, generator=generator, device=device)
            locations = centres[:, None, None, None] + offsets_px / sizes[:, None]
            weights = torch.rand(grid, generator=generator, device=device)
            leaves = [leaf.requires_grad_() for leaf in (value, locations, weights)]
            return lambda: deformable_attention(
                leaves[0], shapes, leaves[1], leaves[2], fused=fused, resample=False
            ).sum()

        return make

    return in_turns({"fused": maker(True), "plain": maker(False)}, device, warmup, steps)
