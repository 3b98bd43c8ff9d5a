"""Norms and casts for mixed precision: what large tensors are kept in between layers.

Plain autocast on CUDA gives the output of a norm in float32, and each linear layer behind it makes, and
keeps, a bfloat16 copy of its own. At stride 4 and a width of 2048 that is 134 MB an image where 67 do. The
norms here return the type of the surrounding autocast; their statistics are accumulated in float32 all the
same, inside the kernel. Without autocast they are torch's own.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskshards.train.model.ops.group_norm import group_normed


def autocast_type(x: Tensor) -> torch.dtype | None:
    """The type that autocast computes in on x's device, or None where it is off or x is float64."""
    device = x.device.type
    if x.dtype is torch.float64 or not torch.is_autocast_enabled(device):
        return None
    return torch.get_autocast_dtype(device)


def to_autocast(x: Tensor) -> Tensor:
    """x in autocast's type: one copy for all the layers that read it."""
    dtype = autocast_type(x)
    return x if dtype is None else x.to(dtype)


class LayerNorm(nn.LayerNorm):
    """torch.nn.LayerNorm that returns autocast's type."""

    def forward(self, x: Tensor) -> Tensor:
        dtype = autocast_type(x)
        if dtype is None:
            return super().forward(x)
        with torch.autocast(x.device.type, enabled=False):
            weight, bias = self.weight.to(dtype), self.bias.to(dtype)
            return F.layer_norm(x.to(dtype), self.normalized_shape, weight, bias, self.eps)


class GroupNorm(nn.GroupNorm):
    """torch.nn.GroupNorm that returns autocast's type, and a channels-last map as one on CUDA as well.

    `fused` or `keeps_layout` False keeps to torch's kernel, which turns such a map into rows there.
    """

    fused: bool = True
    keeps_layout: bool = True

    def forward(self, x: Tensor) -> Tensor:
        dtype = autocast_type(x)
        if dtype is None:
            return self._normed(x)
        with torch.autocast(x.device.type, enabled=False):
            return self._normed(x.to(dtype))

    def _normed(self, maps: Tensor) -> Tensor:
        fused = self.fused and self.keeps_layout
        return group_normed(maps, self.num_groups, self.weight, self.bias, self.eps, fused=fused)
