"""Frozen backbone plus trainable head: what is trained, evaluated and exported.

The head is a separate module, `decoder`: it alone goes to the optimiser, to DistributedDataParallel and into
checkpoints, under the reference's key names (`segmentation_model.0.*` adapter, `segmentation_model.1.*`
head).
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskshards.train.model.backbone.architectures import ModelError, layer_indices
from maskshards.train.model.backbone.frozen import FrozenBackbone
from maskshards.train.model.heads.head import Decoder
from maskshards.train.model.heads.registry import head_called
from maskshards.train.model.heads.rules import MIXED, PRECISIONS, HeadSettings, num_classes_of
from maskshards.train.model.ops.activation_checkpoint import set_recompute


class Segmenter(nn.Module):
    """Backbone and decoder together. `size_multiple`: both sides of an input must divide by it (px)."""

    def __init__(
        self,
        backbone: FrozenBackbone,
        decoder: Decoder,
        indices: tuple[int, ...],
        num_classes: int,
    ) -> None:
        super().__init__()
        self.backbone, self.decoder, self.indices, self.num_classes = backbone, decoder, indices, num_classes
        self.size_multiple = decoder.rules.size_multiple(backbone.patch_px)
        self.compiled = False  # whether torch.compile has been told to take parts of it
        self.replayed = False  # whether training steps are replayed, past the modules' forward

    def features(self, images: Tensor) -> tuple[Tensor, ...]:
        """Patch maps (B, D, H/p, W/p) of the chosen blocks, without gradient.

        ModelError for a size that is no multiple of `size_multiple`.
        """
        height, width = images.shape[-2:]
        if height % self.size_multiple or width % self.size_multiple:
            raise ModelError(
                f"the model was given {height}x{width} px, but {self.backbone.arch.name} with a "
                f"{self.decoder.rules.name} head takes multiples of {self.size_multiple} only: "
                "set transforms.train.crop_size to such"
            )
        return self.backbone(images, self.indices)

    @torch.no_grad()
    def scores(self, images: Tensor) -> Tensor:
        """Semantic scores (B, num_classes, H, W) float32 of images (B, 3, H, W), any H and W.

        What a score is depends on the head. Sides are padded on the right and bottom with zeros to the next
        valid multiple, and the scores cut back. Runs eagerly even where training is compiled: sizes vary
        here, and each would be compiled.
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
        return self.decoder.scores(answer, size)[..., :height, :width]


def build_segmenter(
    backbone: FrozenBackbone,
    decoder: HeadSettings,
    *,
    precision: str = MIXED,
    seed: int = 0,
    checkpointing: bool = False,
) -> Segmenter:
    """A segmenter with a freshly initialised head; the same `seed` gives the same head whatever ran before.

    ConfigError or ModelError for settings that cannot work together. `precision`: see PixelDecoder.
    `checkpointing` trades arithmetic for memory: see Recomputing.
    """
    indices = layer_indices(decoder.backbone_out_layers, backbone.num_blocks)
    head = head_called(decoder.type)
    head.rules.check(decoder)
    if precision not in PRECISIONS:
        raise ModelError(f"precision={precision!r}: expected one of {', '.join(PRECISIONS)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        built = head.build(backbone.embed_dim, len(indices), decoder, precision)
    set_recompute(built, checkpointing)
    return Segmenter(backbone, built, indices, num_classes_of(decoder))
