"""The pixel decoder of Mask2Former (Cheng et al. 2021, arXiv 2112.01527): a pyramid in, mask features out.

The three coarse levels attend to each other through six layers of deformable attention; the result flows into
the stride-4 level, whose features the queries are compared with. Parameter names are those of DINOv3's port.

Letters: B image, D backbone width, C hidden width, S place at strides 32, 16, 8.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskshards.train.model.heads.adapter import to_map, to_tokens
from maskshards.train.model.heads.rules import FEED_FORWARD, MIXED, NORM_GROUPS
from maskshards.train.model.ops.activation_checkpoint import Recomputing
from maskshards.train.model.ops.autocast_norms import GroupNorm, LayerNorm
from maskshards.train.model.ops.deformable_attention import DeformableAttention, Shapes, reference_points
from maskshards.train.model.ops.sine_position import sine_position
from maskshards.train.model.ops.upsample2x import doubled

NUM_LAYERS = 6
NUM_LEVELS = 3


class EncoderLayer(nn.Module):
    """Deformable self-attention over the levels, then a feed-forward layer; residual, then normed."""

    def __init__(self, width: int, ffn_dim: int) -> None:
        super().__init__()
        self.self_attn = DeformableAttention(width, NUM_LEVELS)
        self.norm1 = LayerNorm(width)
        self.linear1 = nn.Linear(width, ffn_dim)
        self.linear2 = nn.Linear(ffn_dim, width)
        self.norm2 = LayerNorm(width)

    def forward(self, tokens: Tensor, position: Tensor, points: Tensor, shapes: Shapes) -> Tensor:
        tokens = self.norm1(tokens + self.self_attn(tokens, points, tokens, shapes, position))
        # Not in place: what a linear layer returns is a view, and autograd copies thrice to change one.
        return self.norm2(tokens + self.linear2(F.relu(self.linear1(tokens))))


class EncoderStack(Recomputing):
    """The layers in a row, under the name that published weights give them."""

    def __init__(self, width: int, ffn_dim: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(width, ffn_dim) for _ in range(NUM_LAYERS))

    def forward(self, tokens: Tensor, position: Tensor, points: Tensor, shapes: Shapes) -> Tensor:
        for layer in self.layers:
            tokens = self.run(layer, tokens, position, points, shapes)
        return tokens


class PyramidEncoder(nn.Module):
    """Three maps of C channels, coarse to fine, exchange information; same shapes out."""

    def __init__(self, width: int, ffn_dim: int) -> None:
        super().__init__()
        self.level_encoding = nn.Parameter(torch.zeros(NUM_LEVELS, width))
        self.encoder = EncoderStack(width, ffn_dim)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        shapes = tuple((m.shape[-2], m.shape[-1]) for m in maps)
        tokens = torch.cat([to_tokens(m) for m in maps], 1)
        coordinate = torch.promote_types(tokens.dtype, torch.float32)
        width, device = tokens.shape[-1], tokens.device
        position = torch.cat(
            [
                sine_position(shape, width, device, coordinate) + self.level_encoding[i]
                for i, shape in enumerate(shapes)
            ]
        )
        points = reference_points(shapes, device, coordinate)
        # In the tokens' type: a float32 sum would be written, and copied down, in each of the six layers.
        tokens = self.encoder(tokens, position.to(tokens.dtype), points, shapes)
        parts = tokens.split([h * w for h, w in shapes], 1)
        return [to_map(part, shape) for part, shape in zip(parts, shapes, strict=True)]


class NormedConv(nn.Conv2d):
    """A convolution without bias that owns the group norm behind it: its keys read `weight` and `norm.*`."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int) -> None:
        super().__init__(channels_in, channels_out, kernel, padding=kernel // 2, bias=False)
        self.norm = GroupNorm(NORM_GROUPS, channels_out)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(super().forward(x))


class PixelDecoder(nn.Module):
    """Pyramid at strides 4, 8, 16, 32 -> mask features and the three coarse maps.

    `precision` "mixed" computes in whatever autocast surrounds it; "reference" in float32 always, as DINOv3
    does. `fused` False keeps to torch's own gradient of the resized map.
    """

    fused: bool = True

    def __init__(
        self, channels: int, width: int, precision: str = MIXED, ffn_dim: int = FEED_FORWARD
    ) -> None:
        super().__init__()
        self.precision = precision
        self.input_convs = nn.ModuleList(
            nn.Sequential(nn.Conv2d(channels, width, 1), GroupNorm(NORM_GROUPS, width))
            for _ in range(NUM_LEVELS)
        )
        self.encoder = PyramidEncoder(width, ffn_dim)
        self.mask_feature = nn.Conv2d(width, width, 1)
        self.lateral_convs = nn.ModuleList([NormedConv(channels, width, 1)])
        self.output_convs = nn.ModuleList([NormedConv(width, width, 3)])
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The reference's initialisation, drawn from torch's current generator."""
        for module in self.input_convs.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                module.bias = nn.Parameter(torch.zeros(module.out_channels))
        for weight in self.encoder.encoder.parameters():
            if weight.dim() > 1:
                nn.init.xavier_uniform_(weight)
        for module in self.encoder.modules():
            if isinstance(module, DeformableAttention):
                module.reset_parameters()
        nn.init.normal_(self.encoder.level_encoding)
        for module in (self.mask_feature, *self.lateral_convs.children(), *self.output_convs.children()):
            nn.init.kaiming_uniform_(module.get_parameter("weight"), a=1)
        nn.init.zeros_(self.mask_feature.get_parameter("bias"))

    def forward(self, pyramid: tuple[Tensor, ...]) -> tuple[Tensor, list[Tensor]]:
        """Mask features (B, C, H/4, W/4) and maps at strides 32, 16, 8.

        From four maps (B, D, ., .), fine to coarse.
        """
        if self.precision == MIXED:
            return self._decode(pyramid)
        with torch.autocast(pyramid[0].device.type, enabled=False):
            return self._decode(tuple(level.float() for level in pyramid))

    def _decode(self, pyramid: tuple[Tensor, ...]) -> tuple[Tensor, list[Tensor]]:
        coarse = [conv(level) for conv, level in zip(self.input_convs, reversed(pyramid[1:]), strict=True)]
        maps = self.encoder(coarse)
        lateral = self.lateral_convs[0](pyramid[0])
        above = doubled(maps[-1], fused=self.fused)
        return self.mask_feature(F.relu(self.output_convs[0](lateral + above), inplace=True)), maps
