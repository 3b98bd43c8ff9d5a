"""One 3x3 depthwise convolution for all levels of a pyramid that is laid out as tokens.

By the library each level becomes a map of its own, a copy where it is a part of the tokens, and the results
are copied together. The Triton kernels read and write the tokens as they lie, all levels in one go. Which is
quicker is for a GPU to say (`maskshards bench gpu`); until then the library's way is the default.

Letters: B image, S place of all levels, C channel, L level.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from maskshards.train.model.ops.autocast_norms import to_autocast
from maskshards.train.model.ops.deformable_fused import Shapes, table_of
from maskshards.train.model.ops.fused import kernels_fit


def depthwise(
    tokens: Tensor, shapes: Shapes, weight: Tensor, bias: Tensor, *, stencil: bool = False
) -> Tensor:
    """(B, S, C) from tokens (B, S, C), levels of `shapes` back to back, row-major, zeros around each.

    weight (C, 1, 3, 3), bias (C,). `stencil` takes the Triton kernels where they can run.

    Raises ValueError where `shapes` do not add up to S.
    """
    places = [height * width for height, width in shapes]
    if sum(places) != tokens.shape[1]:
        raise ValueError(f"depthwise: levels of {sum(places)} places, expected {tokens.shape[1]}: {shapes}")
    if stencil and kernels_fit(tokens):
        return token_stencil(to_autocast(tokens), table_of(shapes, tokens.device), weight, bias)
    maps = []
    for level, shape in zip(tokens.split(places, 1), shapes, strict=True):
        level = level.transpose(1, 2).unflatten(2, shape)
        convolved = F.conv2d(level, weight, bias, padding=1, groups=len(weight))
        maps.append(convolved.flatten(2).transpose(1, 2))
    return torch.cat(maps, 1)


@torch.library.custom_op("maskshards::token_stencil", mutates_args=())
def token_stencil(tokens: Tensor, table: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`depthwise` of the tokens' type; `table` (L, 3) int32: height, width and first place of each level."""
    from maskshards.train.model.ops.kernels.depthwise import forward

    return forward(tokens.contiguous(), table, weight, bias)


@torch.library.custom_op("maskshards::token_stencil_backward", mutates_args=())
def token_stencil_backward(
    grad: Tensor, tokens: Tensor, table: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of tokens, weight and bias in their types; differentiable no further."""
    from maskshards.train.model.ops.kernels.depthwise import backward

    return backward(grad.contiguous(), tokens.contiguous(), table, weight)


@token_stencil.register_fake
def _(tokens: Tensor, table: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return tokens.new_empty(tokens.shape)


@token_stencil_backward.register_fake
def _(grad: Tensor, tokens: Tensor, table: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    of_bias = weight.new_empty(weight.shape[0])
    return tokens.new_empty(tokens.shape), weight.new_empty(weight.shape), of_bias


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    of_tokens, of_weight, of_bias = token_stencil_backward(grad, *ctx.saved_tensors)
    return of_tokens, None, of_weight, of_bias


token_stencil.register_autograd(_differentiate, setup_context=_keep)
