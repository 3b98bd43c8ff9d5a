"""Maps resized to twice their sides, bilinearly, with a gradient that is exact and has one set of bits.

On CUDA torch's gradient of a resized map adds each output's share to its four neighbours by atomics in the
map's own type. In bfloat16 that is sixteen roundings for an entry, in an order that no two runs share. For
exactly twice the size the places that an entry went to are known, so a Triton kernel gathers them: sixteen
reads, a float32 sum, one rounding. The forward pass is torch's own, and elsewhere the gradient too.

Letters: B image, C channel.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from maskshards.train.model.ops.fused import kernels_fit
from maskshards.train.model.ops.resize import resized


def doubled(maps: Tensor, *, fused: bool = True) -> Tensor:
    """(B, C, 2 h, 2 w) from maps (B, C, h, w): F.interpolate, bilinear, corners not aligned.

    `fused` takes the Triton kernel for the gradient where it can run.
    """
    return doubled_by_kernel(maps) if fused and kernels_fit(maps) else _interpolated(maps)


def _interpolated(maps: Tensor) -> Tensor:
    return resized(maps, (2 * maps.shape[-2], 2 * maps.shape[-1]))


@torch.library.custom_op("maskshards::doubled", mutates_args=())
def doubled_by_kernel(maps: Tensor) -> Tensor:
    """An operator, so that torch.compile keeps this gradient instead of its own, which is atomics again."""
    return _interpolated(maps)


@torch.library.custom_op("maskshards::doubled_backward", mutates_args=())
def doubled_backward(grad: Tensor) -> Tensor:
    """The gradient of maps (B, C, h, w) from grad (B, C, 2 h, 2 w), of its dtype and layout.

    Differentiable no further.
    """
    from maskshards.train.model.ops.kernels.upsample2x import gathered

    return gathered(grad, like_half(grad))


@doubled_by_kernel.register_fake
def _(maps: Tensor) -> Tensor:
    return _interpolated(maps)


@doubled_backward.register_fake
def _(grad: Tensor) -> Tensor:
    return like_half(grad)


def like_half(grad: Tensor) -> Tensor:
    """Room for the gradient of the maps: channels-last where `grad` is, else in rows."""
    batch, channels, height, width = grad.shape
    last = not grad.is_contiguous() and grad.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if last else torch.contiguous_format
    return torch.empty(
        (batch, channels, height // 2, width // 2),
        dtype=grad.dtype, device=grad.device, memory_format=layout,
    )  # fmt: skip


def _differentiate(ctx: Any, grad: Tensor) -> Tensor:
    return doubled_backward(grad)


doubled_by_kernel.register_autograd(_differentiate)
