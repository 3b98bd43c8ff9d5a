"""The frozen backbone: images in, patch maps of chosen blocks out; training cannot change it.

It keeps eval mode and no_grad by itself whatever its owner does (`.train()` would switch on the random
rescaling of DINOv3's rotary positions), holds no parameter that requires a gradient and stays out of its
owner's state dict. Blocks are run one by one because transformers' `hidden_states` disagree between releases
on whether the last entry has been through the final norm; blocks after the last one asked for are not run at
all.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskshards.train.model.backbone.architectures import (
    DINOV3,
    FP8,
    FULL,
    OFFSET,
    Architecture,
    ModelError,
    position_rule,
)
from maskshards.train.model.backbone.fp8 import in_fp8

OFFSET_PATCHES = 0.1  # what DINOv2 adds to a grid's sides before it divides them by the table's


class FrozenBackbone(nn.Module):
    """A vision transformer of transformers as a pure function of images.

    `vit` is a DINOv3ViTModel, Dinov2Model or Dinov2WithRegistersModel; `digest` identifies its weights.
    `rule` is how it resizes learned positions (`architectures.position_rule`; None: the default), `precision`
    that of the products in its blocks (FULL or FP8).
    `matrix_dtype` other than float32 stores the blocks' matrices in it and computes under autocast of that
    type: the same numbers as autocast over float32 weights, at half the memory and without casting them at
    every step.
    """

    def __init__(
        self,
        vit: nn.Module,
        arch: Architecture,
        digest: str,
        matrix_dtype: torch.dtype = torch.float32,
        rule: str | None = None,
        precision: str = FULL,
    ) -> None:
        super().__init__()
        self.vit = vit
        self.arch, self.digest, self.matrix_dtype = arch, digest, matrix_dtype
        self.position_rule = position_rule(arch.name, rule)
        self.precision = precision
        if precision == FP8:
            in_fp8(blocks_of(vit))
        self.embed_dim, self.patch_px, self.num_blocks = arch.embed_dim, arch.patch_px, arch.num_blocks
        self.requires_grad_(False)
        super().train(False)

    def train(self, mode: bool = True) -> FrozenBackbone:
        """Stays in eval mode, whatever `mode` says."""
        return super().train(False)

    def compile_blocks(self, **options: Any) -> None:
        """Let torch.compile fuse each block; `options` go to it.

        All blocks share one compiled program, made at the first image of each size.
        """
        for block in blocks_of(self.vit):
            block.compile(**options)

    @torch.no_grad()
    def forward(self, images: Tensor, indices: tuple[int, ...]) -> tuple[Tensor, ...]:
        """Patch maps (B, D, H/p, W/p) of blocks `indices` (ascending), through the final norm.

        `images` (B, 3, H, W) float, normalised; H and W are multiples of the patch. ModelError otherwise.
        """
        height, width = images.shape[-2:]
        if height % self.patch_px or width % self.patch_px:
            raise ModelError(
                f"an image of {height}x{width} px does not divide into the patches of {self.arch.name}, "
                f"{self.patch_px} px each"
            )
        if self.matrix_dtype is torch.float32:
            return self._maps(images, indices)
        with torch.autocast(images.device.type, dtype=self.matrix_dtype):
            return self._maps(images, indices)

    def _maps(self, images: Tensor, indices: tuple[int, ...]) -> tuple[Tensor, ...]:
        vit: Any = self.vit
        grid_h, grid_w = images.shape[-2] // self.patch_px, images.shape[-1] // self.patch_px
        tokens = self._embed(images, (grid_h, grid_w))
        rotary = {}
        if self.arch.family == DINOV3:
            rotary["position_embeddings"] = vit.rope_embeddings(images)
        maps = []
        for index, block in enumerate(blocks_of(vit)[: max(indices) + 1]):
            out = block(tokens, **rotary)
            tokens = out[0] if isinstance(out, tuple) else out
            if index in indices:
                # Class and register tokens stand first.
                patches = final_norm_of(vit)(tokens)[:, -grid_h * grid_w :]
                maps.append(patches.unflatten(1, (grid_h, grid_w)).permute(0, 3, 1, 2))
        return tuple(maps)

    def _embed(self, images: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, 1 + registers + patches, D): class token, registers if any, patches, with their positions."""
        embeddings: Any = self.vit.embeddings
        if self.position_rule != OFFSET:
            return embeddings(images)
        patches = embeddings.patch_embeddings(images)
        tokens = torch.cat((embeddings.cls_token.expand(images.shape[0], -1, -1), patches), dim=1)
        return tokens + offset_positions(embeddings.position_embeddings, grid)


def offset_positions(table: Tensor, grid: tuple[int, int]) -> Tensor:
    """(1, 1 + h * w, D): positions of the class token and of a grid of h x w patches, from a square `table`.

    DINOv2's own rule (`interpolate_offset`): bicubic, with (side + 0.1) / table side as the scale, so the
    grid reaches a little less far than the table. A grid of the table's own size takes it as it is.
    """
    side = round((table.shape[1] - 1) ** 0.5)
    if grid == (side, side):
        return table
    square = table[:, 1:].float().transpose(1, 2).unflatten(2, (side, side))
    scale = [(length + OFFSET_PATCHES) / side for length in grid]
    resized = F.interpolate(square, scale_factor=scale, mode="bicubic", align_corners=False)
    return torch.cat((table[:, :1], resized.flatten(2).transpose(1, 2).to(table.dtype)), dim=1)


def blocks_of(vit: Any) -> nn.ModuleList:
    """The transformer blocks, wherever the installed transformers keeps them."""
    for path in ("model.layer", "encoder.layer", "layer"):
        try:
            return vit.get_submodule(path)
        except AttributeError:
            continue
    raise ModelError(
        f"{type(vit).__name__} of the installed transformers has no list of blocks that is known here"
    )


def final_norm_of(vit: Any) -> nn.Module:
    """The LayerNorm after the last block."""
    return vit.norm if hasattr(vit, "norm") else vit.layernorm
