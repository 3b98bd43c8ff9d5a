"""The linear head: batch norm and one 1x1 convolution over the concatenated patch maps.

It learns by the cross entropy of every labelled pixel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from maskshards.shards.batch import CropBatch
from maskshards.train.config.schema import TrainConfig
from maskshards.train.losses.matched_loss import linear_loss
from maskshards.train.model.heads.head import Decoder, Head, HeadLoss, HeadLosses, Reduce, beside
from maskshards.train.model.heads.rules import HEAD_RULES, HeadSettings, num_classes_of
from maskshards.train.model.ops.resize import resized
from maskshards.train.model.ops.stochastic_depth import draw_keep_factors


class LinearHead(nn.Module):
    """Patch maps -> class score map at the resolution of the first one; the reference's parameter names."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.batchnorm_layer = nn.BatchNorm2d(channels)
        self.conv = nn.Conv2d(channels, num_classes, 1)
        nn.init.normal_(self.conv.weight, std=0.01)
        self.conv.bias = nn.Parameter(torch.zeros(num_classes))

    def forward(self, features: tuple[Tensor, ...], keep: Tensor | None = None) -> Tensor:
        """(B, num_classes, h, w) from features (B, D, h, w) each; keep (B, channels) of channel dropout."""
        size = features[0].shape[-2], features[0].shape[-1]
        x = torch.cat([features[0], *(resized(f, size) for f in features[1:])], 1)
        if keep is not None:
            x = x * keep[:, :, None, None].to(x.dtype)
        return self.conv(self.batchnorm_layer(x))


class LinearDecoder(Decoder):
    """The linear head alone, in the place where facebookresearch/dinov3 keeps it."""

    rules = HEAD_RULES["linear"]

    def __init__(self, channels: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.channels, self.dropout = channels, dropout
        self.segmentation_model = nn.ModuleList([nn.Identity(), LinearHead(channels, num_classes)])

    def forward(self, images: Tensor, features: tuple[Tensor, ...], drops: Tensor | None = None) -> Tensor:
        """Class score map (B, num_classes, h, w) from patch maps (B, D, h, w) each; no look at `images`."""
        return self.segmentation_model[1](features, beside(drops, images))

    def draw_drops(self, positions: Sequence[int], seed: int) -> Tensor | None:
        """(B, channels) factors of channel dropout; None in eval mode."""
        if not self.training:
            return None
        return draw_keep_factors(positions, seed, "linear channel dropout", self.channels, self.dropout)

    def scores(self, answer: Tensor, size: tuple[int, int]) -> Tensor:
        """Class logits."""
        return resized(answer.float(), size)

    def phases(self) -> dict[str, nn.Module]:
        return {"linear head": self.segmentation_model[1]}

    def pieces(self) -> list[nn.Module]:
        return [self.segmentation_model[1]]


@dataclass(frozen=True)
class PixelLoss(HeadLoss):
    """Cross entropy of every labelled pixel."""

    weight: float

    brings_flag = False  # nothing of it goes to the host

    def __call__(
        self,
        answer: Tensor,
        crops: CropBatch,
        *,
        seed: int,
        reduce: Reduce | None,
        flag: Tensor | None = None,
        meanwhile: Callable[[], None] | None = None,
    ) -> HeadLosses:
        loss = linear_loss(answer, crops, reduce)
        return HeadLosses(self.weight * loss, {"cross_entropy": loss.detach()})

    def alone(self, answer: Tensor, crops: CropBatch, *, seed: int, dump_dir: Path | None = None) -> Tensor:
        return self.weight * linear_loss(answer, crops)


class Linear(Head):
    """`decoder_head.type=linear`."""

    rules = HEAD_RULES["linear"]
    decoder = LinearDecoder

    def build(self, embed_dim: int, num_maps: int, settings: HeadSettings, precision: str) -> LinearDecoder:
        return LinearDecoder(embed_dim * num_maps, num_classes_of(settings), settings.dropout)

    def loss(self, config: TrainConfig) -> PixelLoss:
        return PixelLoss(config.train.celoss_weight)
