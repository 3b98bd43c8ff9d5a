"""Frozen backbone plus trainable head: what is trained, evaluated and exported.

The head is a separate module, `decoder`: it alone goes to the optimiser, to DistributedDataParallel and into
checkpoints, under the reference's key names (`segmentation_model.0.*` adapter, `segmentation_model.1.*`
head).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskshards.train.model.backbone.architectures import ModelError, layer_indices
from maskshards.train.model.backbone.frozen import FrozenBackbone
from maskshards.train.model.heads.adapter import DROP_PATH_RATE, NUM_EXTRACTORS, Adapter
from maskshards.train.model.heads.linear import LinearHead
from maskshards.train.model.heads.pixel_decoder import PRECISIONS, PixelDecoder
from maskshards.train.model.heads.prediction import Prediction
from maskshards.train.model.heads.query_decoder import QueryDecoder
from maskshards.train.model.heads.rules import HeadSettings, head_rules
from maskshards.train.model.ops.activation_checkpoint import set_recompute
from maskshards.train.model.ops.stochastic_depth import draw_keep_factors


class MaskHead(nn.Module):
    """Pixel decoder, then query decoder."""

    def __init__(self, channels: int, settings: HeadSettings, precision: str) -> None:
        super().__init__()
        width, ffn_dim = settings.hidden_dim, settings.ffn_dim
        self.pixel_decoder = PixelDecoder(channels, width, precision, ffn_dim)
        self.predictor = QueryDecoder(width, settings.num_classes, settings.num_queries, ffn_dim)

    def forward(self, pyramid: tuple[Tensor, ...]) -> list[Prediction]:
        return self.predictor(*self.pixel_decoder(pyramid))


class MaskDecoder(nn.Module):
    """Adapter and Mask2Former head: all that is trained in `m2f` mode."""

    def __init__(self, channels: int, settings: HeadSettings, precision: str) -> None:
        super().__init__()
        head = MaskHead(channels, settings, precision)
        self.segmentation_model = nn.ModuleList([Adapter(channels), head])

    def forward(
        self, images: Tensor, features: tuple[Tensor, ...], drops: Tensor | None = None
    ) -> list[Prediction]:
        """10 predictions, the last final: images (B, 3, H, W), features four (B, D, h, w), drops as drawn."""
        adapter, head = self.segmentation_model
        return head(adapter(images, features, _on(drops, images)))

    def draw_drops(self, positions: Sequence[int], seed: int) -> Tensor | None:
        """(B, 6) factors of the adapter's stochastic depth; None in eval mode."""
        if not self.training:
            return None
        return draw_keep_factors(positions, seed, "adapter drop path", NUM_EXTRACTORS, DROP_PATH_RATE)


class LinearDecoder(nn.Module):
    """The linear head alone, in the place where the reference keeps it."""

    def __init__(self, channels: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.channels, self.dropout = channels, dropout
        self.segmentation_model = nn.ModuleList([nn.Identity(), LinearHead(channels, num_classes)])

    def forward(self, images: Tensor, features: tuple[Tensor, ...], drops: Tensor | None = None) -> Tensor:
        """Class score map (B, num_classes, h, w) from patch maps (B, D, h, w) each; `images` is not looked
        at.
        """
        return self.segmentation_model[1](features, _on(drops, images))

    def draw_drops(self, positions: Sequence[int], seed: int) -> Tensor | None:
        """(B, channels) factors of channel dropout; None in eval mode."""
        if not self.training:
            return None
        return draw_keep_factors(positions, seed, "linear channel dropout", self.channels, self.dropout)


class Segmenter(nn.Module):
    """Backbone and decoder together. `size_multiple`: both sides of an input must divide by it (px)."""

    def __init__(
        self,
        backbone: FrozenBackbone,
        decoder: MaskDecoder | LinearDecoder,
        indices: tuple[int, ...],
        num_classes: int,
    ) -> None:
        super().__init__()
        self.backbone, self.decoder, self.indices, self.num_classes = backbone, decoder, indices, num_classes
        self.kind = "m2f" if isinstance(decoder, MaskDecoder) else "linear"
        self.size_multiple = head_rules(self.kind).size_multiple(backbone.patch_px)
        self.compiled = False  # whether torch.compile has been told to take parts of it

    def features(self, images: Tensor) -> tuple[Tensor, ...]:
        """Patch maps (B, D, H/p, W/p) of the chosen blocks, without gradient. ModelError for a size that is
        no multiple of `size_multiple`."""
        height, width = images.shape[-2:]
        if height % self.size_multiple or width % self.size_multiple:
            raise ModelError(
                f"the model was given {height}x{width} px, but {self.backbone.arch.name} with a {self.kind} "
                f"head takes multiples of {self.size_multiple} only: set transforms.train.crop_size to such"
            )
        return self.backbone(images, self.indices)

    @torch.no_grad()
    def scores(self, images: Tensor) -> Tensor:
        """Semantic scores (B, num_classes, H, W) float32 of images (B, 3, H, W), any H and W.

        m2f: sum over queries of class probability (without "no object") x mask probability. linear: class
        logits. Sides are padded on the right and bottom with zeros to the next valid multiple, and the scores
        cut back. Runs eagerly even where training is compiled: sizes vary here, and each would be compiled.
        """
        height, width = images.shape[-2:]
        pad = (-width % self.size_multiple, -height % self.size_multiple)
        padded = F.pad(images, (0, pad[0], 0, pad[1]))
        was_training = self.decoder.training
        self.decoder.eval()
        try:
            with torch.compiler.set_stance("force_eager") if self.compiled else nullcontext():
                answer = self.decoder(padded, self.features(padded))
        finally:
            self.decoder.train(was_training)
        size = (padded.shape[-2], padded.shape[-1])
        full = (
            _resize(answer.float(), size) if isinstance(answer, Tensor) else semantic_scores(answer[-1], size)
        )
        return full[..., :height, :width]


def semantic_scores(prediction: Prediction, size: tuple[int, int]) -> Tensor:
    """(B, C, *size) float32 from one prediction; masks are resized as logits, one image at a time to spare
    memory.
    """
    classes = prediction.class_logits.float().softmax(-1)[..., :-1]
    rows = []
    for probability, logits in zip(classes, prediction.mask_logits, strict=True):
        masks = _resize(logits[None].float(), size)[0].sigmoid()
        rows.append(torch.einsum("qc,qhw->chw", probability, masks))
    return torch.stack(rows)


def build_segmenter(
    backbone: FrozenBackbone,
    decoder: HeadSettings,
    *,
    precision: str = "mixed",
    seed: int = 0,
    checkpointing: bool = False,
) -> Segmenter:
    """A segmenter with a freshly initialised head; the same `seed` gives the same head whatever ran before.

    ConfigError or ModelError for settings that cannot work together. `precision`: see PixelDecoder.
    `checkpointing` trades arithmetic for memory: see Recomputing.
    """
    indices = layer_indices(decoder.backbone_out_layers, backbone.num_blocks)
    head_rules(decoder.type).check(decoder)
    if precision not in PRECISIONS:
        raise ModelError(f"precision={precision!r}: expected one of {', '.join(PRECISIONS)}")
    channels = backbone.embed_dim
    head: MaskDecoder | LinearDecoder
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if decoder.type == "linear":
            head = LinearDecoder(channels * len(indices), decoder.num_classes, decoder.dropout)
        else:
            head = MaskDecoder(channels, decoder, precision)
    set_recompute(head, checkpointing)
    return Segmenter(backbone, head, indices, decoder.num_classes)


def _resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)


def _on(drops: Tensor | None, images: Tensor) -> Tensor | None:
    return None if drops is None else drops.to(images.device, non_blocking=True)
