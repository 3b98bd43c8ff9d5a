"""The Mask2Former head: ViT adapter, pixel decoder and query decoder, trained by matching masks.

Ten predictions are supervised, each matched with the crop's masks and compared at points.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from maskshards.shards.batch import CropBatch
from maskshards.train.config.schema import TrainConfig
from maskshards.train.losses.matched_loss import MatchedLoss
from maskshards.train.losses.nonfinite import NonFiniteError
from maskshards.train.model.heads.adapter import DROP_PATH_RATE, NUM_EXTRACTORS, Adapter
from maskshards.train.model.heads.head import Decoder, Head, HeadLoss, HeadLosses, Reduce, beside
from maskshards.train.model.heads.pixel_decoder import PixelDecoder
from maskshards.train.model.heads.prediction import Prediction
from maskshards.train.model.heads.query_decoder import QueryDecoder
from maskshards.train.model.heads.rules import HEAD_RULES, HeadSettings, num_classes_of
from maskshards.train.model.ops.resize import resized
from maskshards.train.model.ops.stochastic_depth import draw_keep_factors


class MaskHead(nn.Module):
    """Pixel decoder, then query decoder."""

    def __init__(self, channels: int, settings: HeadSettings, precision: str) -> None:
        super().__init__()
        width, ffn_dim = settings.hidden_dim, settings.ffn_dim
        self.pixel_decoder = PixelDecoder(channels, width, precision, ffn_dim)
        self.predictor = QueryDecoder(width, num_classes_of(settings), settings.num_queries, ffn_dim)

    def forward(self, pyramid: tuple[Tensor, ...]) -> list[Prediction]:
        return self.predictor(*self.pixel_decoder(pyramid))


class MaskDecoder(Decoder):
    """Adapter and Mask2Former head."""

    rules = HEAD_RULES["m2f"]

    def __init__(self, channels: int, settings: HeadSettings, precision: str) -> None:
        super().__init__()
        head = MaskHead(channels, settings, precision)
        self.segmentation_model = nn.ModuleList([Adapter(channels), head])

    def forward(
        self, images: Tensor, features: tuple[Tensor, ...], drops: Tensor | None = None
    ) -> list[Prediction]:
        """10 predictions, the last final; in eval mode that alone.

        images (B, 3, H, W), features four (B, D, h, w), drops as drawn.
        """
        adapter, head = self.segmentation_model
        return head(adapter(images, features, beside(drops, images)))

    def draw_drops(self, positions: Sequence[int], seed: int) -> Tensor | None:
        """(B, 6) factors of the adapter's stochastic depth; None in eval mode."""
        if not self.training:
            return None
        return draw_keep_factors(positions, seed, "adapter drop path", NUM_EXTRACTORS, DROP_PATH_RATE)

    @property
    def mask_counts(self) -> tuple[int, int]:
        predictor: Any = self.segmentation_model[1].get_submodule("predictor")
        return len(predictor.transformer_cross_attention_layers) + 1, predictor.query_feat.num_embeddings

    def scores(self, answer: list[Prediction], size: tuple[int, int]) -> Tensor:
        """Sum over queries of class probability (without "no object") x mask probability."""
        return semantic_scores(answer[-1], size)

    def phases(self) -> dict[str, nn.Module]:
        adapter, head = self.segmentation_model
        parts = dict(head.named_children())
        return {
            "adapter": adapter,
            "pixel decoder": parts["pixel_decoder"],
            "query decoder": parts["predictor"],
        }

    def pieces(self) -> list[nn.Module]:
        adapter, head = self.segmentation_model
        return [adapter, *head.children()]


def semantic_scores(prediction: Prediction, size: tuple[int, int]) -> Tensor:
    """(B, C, *size) float32 from one prediction, image by image to spare memory; masks resized as logits."""
    classes = prediction.class_logits.float().softmax(-1)[..., :-1]
    rows = []
    for probability, logits in zip(classes, prediction.mask_logits, strict=True):
        masks = resized(logits[None].float(), size)[0].sigmoid()
        rows.append(torch.einsum("qc,qhw->chw", probability, masks))
    return torch.stack(rows)


@dataclass(frozen=True)
class MaskLoss(HeadLoss):
    """The matched loss, summed over all supervised predictions."""

    matched: MatchedLoss

    brings_flag = True  # with the matching costs, which the host waits for anyway

    def __call__(
        self,
        answer: list[Prediction],
        crops: CropBatch,
        *,
        seed: int,
        reduce: Reduce | None,
        flag: Tensor | None = None,
        meanwhile: Callable[[], None] | None = None,
    ) -> HeadLosses:
        try:
            terms = self.matched(
                answer, crops, seed=seed, world_reduce=reduce, flags=flag, meanwhile=meanwhile
            )
        except NonFiniteError:
            if reduce is not None:  # the other ranks wait for our part of the normalisers
                reduce(torch.zeros(3, device=crops.images.device))
            nan = torch.full((), torch.nan, device=crops.images.device)
            return HeadLosses(poisoned(answer), dict.fromkeys(("mask", "dice", "class"), nan))
        parts = {"mask": terms.mask, "dice": terms.dice, "class": terms.classify}
        means = {name: value.detach().mean() for name, value in parts.items()}
        return HeadLosses(
            terms.total, means, None if terms.flags_on_host is None else float(terms.flags_on_host[0])
        )

    def alone(
        self, answer: list[Prediction], crops: CropBatch, *, seed: int, dump_dir: Path | None = None
    ) -> Tensor:
        return self.matched(answer, crops, seed=seed, world_reduce=None, dump_dir=dump_dir).total


def poisoned(predictions: Sequence[Prediction]) -> Tensor:
    """A loss that is NaN and reaches every parameter: how one rank tells all that a step cannot count."""
    sums = [p.class_logits.float().sum() + p.mask_logits.float().sum() for p in predictions]
    return torch.stack(sums).sum() * torch.nan


class Mask2Former(Head):
    """`decoder_head.type=m2f`."""

    rules = HEAD_RULES["m2f"]
    decoder = MaskDecoder

    def build(self, embed_dim: int, num_maps: int, settings: HeadSettings, precision: str) -> MaskDecoder:
        return MaskDecoder(embed_dim, settings, precision)

    def loss(self, config: TrainConfig) -> MaskLoss:
        return MaskLoss(
            MatchedLoss(config.m2f_train, config.decoder_head.classes, fused=config.fused_kernels)
        )
