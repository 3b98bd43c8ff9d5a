"""Group norm of maps whose channels lie side by side (channels-last), without turning them over.

torch's CUDA kernel reads rows: a channels-last map is copied before it, comes out in rows, and what follows
mixes both layouts. Here two Triton kernels a direction read and write the map as it lies. Statistics and sums
are float32 whatever the map is, and no atomics are used: one input, one set of bits. Wu and He 2018,
arXiv 1803.08494.

Letters: B image, C channel, G group.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from maskshards.train.model.ops.fused import kernels_fit


def group_normed(
    maps: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float, *, fused: bool = True
) -> Tensor:
    """(B, C, h, w) of the type and layout of `maps` (B, C, h, w); weight and bias (C,).

    `fused` takes the Triton kernels where they run and the map is channels-last; elsewhere it is torch's own,
    with weight and bias in the map's type.
    """
    if fused and kernels_fit(maps) and lies_last(maps):
        return group_norm_last(maps, weight, bias, groups, eps)[0]
    return F.group_norm(maps, groups, weight.to(maps.dtype), bias.to(maps.dtype), eps)


def lies_last(maps: Tensor) -> bool:
    """Whether a map with something in it is channels-last, and not in rows as well."""
    if maps.dim() != 4 or maps.numel() == 0 or maps.is_contiguous():
        return False
    return maps.is_contiguous(memory_format=torch.channels_last)


@torch.library.custom_op("maskshards::group_norm_last", mutates_args=())
def group_norm_last(
    maps: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The normed maps, channels-last, and mean and 1 / deviation (B, G) float32 for the backward pass.

    ValueError where G does not divide C.
    """
    from maskshards.train.model.ops.kernels.group_norm import forward

    if maps.shape[1] % groups:
        raise ValueError(f"group norm: {maps.shape[1]} channels in {groups} groups; expected a multiple")
    return forward(maps.contiguous(memory_format=torch.channels_last), weight, bias, groups, eps)


@torch.library.custom_op("maskshards::group_norm_last_backward", mutates_args=())
def group_norm_last_backward(
    grad: Tensor, maps: Tensor, weight: Tensor, mean: Tensor, inverse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of maps, weight and bias in the types of maps and weight; differentiable no further."""
    from maskshards.train.model.ops.kernels.group_norm import backward

    last = torch.channels_last
    grad, maps = grad.contiguous(memory_format=last), maps.contiguous(memory_format=last)
    return backward(grad, maps, weight, mean, inverse)


@group_norm_last.register_fake
def _(maps: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    mean, inverse = (maps.new_empty((maps.shape[0], groups), dtype=torch.float32) for _ in range(2))
    return torch.empty_like(maps, memory_format=torch.channels_last), mean, inverse


@group_norm_last_backward.register_fake
def _(
    grad: Tensor, maps: Tensor, weight: Tensor, mean: Tensor, inverse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    of_maps = torch.empty_like(maps, memory_format=torch.channels_last)
    return of_maps, torch.empty_like(weight), torch.empty_like(weight)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    maps, weight, *_ = inputs
    ctx.save_for_backward(maps, weight, *output[1:])


def _differentiate(ctx: Any, grad: Tensor, *of_statistics: Any) -> tuple[Tensor | None, ...]:
    return (*group_norm_last_backward(grad, *ctx.saved_tensors), None, None)


group_norm_last.register_autograd(_differentiate, setup_context=_keep)
