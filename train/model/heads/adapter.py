"""A convolutional side branch that gives a frozen vision transformer a feature pyramid.

ViT-Adapter (Chen et al. 2022, arXiv 2205.08534) without its injectors, as DINOv3's segmentation system uses
it: the transformer is read, never changed. A small convolutional pyramid at strides 4 to 32 gathers from four
patch maps by deformable attention; the patch maps are then added to it. Parameter names are the reference's.

Letters: B image, D width, S pyramid place at strides 8, 16, 32.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskshards.train.model.ops.activation_checkpoint import Recomputing
from maskshards.train.model.ops.autocast_norms import LayerNorm, to_autocast
from maskshards.train.model.ops.deformable_attention import DeformableAttention, Shapes, reference_points
from maskshards.train.model.ops.depthwise import depthwise
from maskshards.train.model.ops.resize import resized

NUM_EXTRACTORS = 6  # one for each of the four maps, and two more after the last
DROP_PATH_RATE = 0.3
NORM_EPS = 1e-6
STRIDES = (8, 16, 32)  # levels that take part in the attention; stride 4 joins afterwards


def _conv_norm(channels_in: int, channels_out: int, stride: int) -> list[nn.Module]:
    conv = nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False)
    return [conv, nn.BatchNorm2d(channels_out), nn.ReLU(inplace=True)]


class ConvPyramid(nn.Module):
    """Image (B, 3, H, W) -> maps at strides 4, 8, 16 and 32, D channels each."""

    def __init__(self, width: int, inner: int = 64) -> None:
        super().__init__()
        first, second, third = (_conv_norm(a, inner, s) for a, s in ((3, 2), (inner, 1), (inner, 1)))
        self.stem = nn.Sequential(*first, *second, *third, nn.MaxPool2d(3, stride=2, padding=1))
        self.conv2 = nn.Sequential(*_conv_norm(inner, 2 * inner, 2))
        self.conv3 = nn.Sequential(*_conv_norm(2 * inner, 4 * inner, 2))
        self.conv4 = nn.Sequential(*_conv_norm(4 * inner, 4 * inner, 2))
        self.fc1 = nn.Conv2d(inner, width, 1)
        self.fc2 = nn.Conv2d(2 * inner, width, 1)
        self.fc3 = nn.Conv2d(4 * inner, width, 1)
        self.fc4 = nn.Conv2d(4 * inner, width, 1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        c1 = self.stem(images)
        c2 = self.conv2(c1)
        c3 = self.conv3(c2)
        c4 = self.conv4(c3)
        return self.fc1(c1), self.fc2(c2), self.fc3(c3), self.fc4(c4)


class DepthwiseConv(nn.Module):
    """One 3x3 depthwise convolution shared by the levels of a pyramid laid out as tokens.

    `stencil` takes the Triton kernels where they run; which way is quicker is not measured.
    """

    stencil: bool = False

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(width, width, 3, padding=1, groups=width)

    def forward(self, tokens: Tensor, shapes: Shapes) -> Tensor:
        conv = self.dwconv
        assert conv.bias is not None
        return depthwise(tokens, shapes, conv.weight, conv.bias, stencil=self.stencil)


class ConvFeedForward(nn.Module):
    """Feed-forward layer that also looks at its neighbours: fc1 -> depthwise convolution -> GELU -> fc2."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.dwconv = DepthwiseConv(hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, tokens: Tensor, shapes: Shapes) -> Tensor:
        return self.fc2(F.gelu(self.dwconv(self.fc1(tokens), shapes)))


class Extractor(nn.Module):
    """The pyramid gathers from one patch map, then passes through a ConvFeedForward; both residual."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query_norm = LayerNorm(width, eps=NORM_EPS)
        self.feat_norm = LayerNorm(width, eps=NORM_EPS)
        self.attn = DeformableAttention(width, num_levels=1, value_ratio=0.5)
        self.ffn = ConvFeedForward(width, width // 4)
        self.ffn_norm = LayerNorm(width, eps=NORM_EPS)

    def forward(
        self,
        pyramid: Tensor,
        shapes: Shapes,
        points: Tensor,
        patches: Tensor,
        patch_shape: Shapes,
        keep: Tensor | None,
    ) -> Tensor:
        """pyramid (B, S, D), points (S, 2), patches (B, h * w, D), keep (B,) of the feed-forward branch."""
        query, features = self.query_norm(pyramid), self.feat_norm(patches)
        pyramid = pyramid + self.attn(query, points, features, patch_shape)
        branch = self.ffn(self.ffn_norm(pyramid), shapes)
        if keep is not None:
            branch = branch * keep[:, None, None].to(branch.dtype)
        return pyramid + branch


class Interaction(nn.Module):
    """The extractors that read one patch map: one, and `num_extra` more in sequence."""

    def __init__(self, width: int, num_extra: int) -> None:
        super().__init__()
        self.extractor = Extractor(width)
        if num_extra:
            self.extra_extractors = nn.ModuleList(Extractor(width) for _ in range(num_extra))

    def extractors(self) -> list[Extractor]:
        return [self.extractor, *getattr(self, "extra_extractors", ())]


class Adapter(Recomputing):
    """Images and four patch maps -> four maps at strides 4, 8, 16 and 32 with D channels.

    Batch norms are plain BatchNorm2d; see `maskshards.train.model.ops.sync_batch_norm` for several ranks.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.level_embed = nn.Parameter(torch.zeros(3, width))
        self.spm = ConvPyramid(width)
        self.interactions = nn.ModuleList(Interaction(width, num_extra=2 if i == 3 else 0) for i in range(4))
        self.up = nn.ConvTranspose2d(width, width, 2, stride=2)
        self.norm1, self.norm2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)  # strides 4, 8
        self.norm3, self.norm4 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)  # strides 16, 32
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The reference's initialisation, drawn from torch's current generator."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
                nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, DeformableAttention):
                module.reset_parameters()
        nn.init.normal_(self.level_embed)

    def forward(
        self, images: Tensor, features: tuple[Tensor, ...], keep: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """images (B, 3, H, W), multiples of 32; features: four (B, D, h, w); keep (B, NUM_EXTRACTORS)."""
        # Channels side by side, as tokens are: one layout for the maps, and no sums that transpose.
        c1, *levels = self.spm(images.contiguous(memory_format=torch.channels_last))
        features = tuple(to_autocast(feature) for feature in features)
        shapes = tuple((level.shape[-2], level.shape[-1]) for level in levels)
        # Under autocast the residual stream is kept in its type: float32 would double what is moved and kept.
        pyramid = to_autocast(
            torch.cat([to_tokens(c) + self.level_embed[i] for i, c in enumerate(levels)], 1)
        )
        coordinate = torch.promote_types(images.dtype, torch.float32)
        points = reference_points(shapes, images.device, coordinate)
        step = 0
        for extractors, patch_map in zip(self._extractors(), features, strict=True):
            patches, patch_shape = to_tokens(patch_map), ((patch_map.shape[-2], patch_map.shape[-1]),)
            for extractor in extractors:
                factors = None if keep is None else keep[:, step]
                pyramid = self.run(extractor, pyramid, shapes, points, patches, patch_shape, factors)
                step += 1
        c2, c3, c4 = (
            to_map(tokens, shape)
            for tokens, shape in zip(pyramid.split([h * w for h, w in shapes], 1), shapes, strict=True)
        )
        maps = (self.up(c2) + c1, c2, c3, c4)
        summed = [m + resized(f, (m.shape[-2], m.shape[-1])) for m, f in zip(maps, features, strict=True)]
        return self.norm1(summed[0]), self.norm2(summed[1]), self.norm3(summed[2]), self.norm4(summed[3])

    def _extractors(self) -> list[list[Extractor]]:
        """Those of each patch map, in the order in which they run."""
        return [i.extractors() for i in self.interactions.children() if isinstance(i, Interaction)]


def to_tokens(feature_map: Tensor) -> Tensor:
    """(B, D, h, w) -> (B, h * w, D), row-major."""
    return feature_map.flatten(2).transpose(1, 2)


def to_map(tokens: Tensor, shape: tuple[int, int]) -> Tensor:
    """(B, h * w, D) -> (B, D, h, w), channels-last: also told so by the strides of a single image."""
    return tokens.unflatten(1, shape).permute(0, 3, 1, 2)
