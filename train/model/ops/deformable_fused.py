"""The door to the fused deformable attention.

The kernels are two operators of the namespace `maskshards`, registered here with shapes and gradient, so that
torch.compile puts them into its graph as they are instead of breaking it. Triton is imported only when one of
them runs, so that machines without it never miss it.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

Shapes = tuple[tuple[int, int], ...]  # (height, width) of each level


def deformable_attention_kernel(
    value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor, *, points_first: bool = False
) -> Tensor:
    """The same function as `deformable_attention`, values and three gradients, in two fused kernels.

    value (B, S, M, D) float32, bfloat16 or float16, any D; locations (B, Q, M, L, P, 2) and weights (B,
    Q, M, L, P) float32, any L and P; with `points_first` they are (B, M, L, P, 2, Q) and (B, M, L, P, Q),
    which the kernels read by whole lines. Returns (B, Q, M * D) of value's dtype. Waits for nothing on the
    device. Raises ValueError where `shapes` do not add up to S or are not L in number.
    """
    places = sum(height * width for height, width in shapes)
    levels = weights.shape[2 if points_first else 3]
    if places != value.shape[1] or len(shapes) != levels:
        raise ValueError(
            f"deformable attention: {len(shapes)} levels of {places} places in all, expected "
            f"{levels} levels and {value.shape[1]} places"
        )
    return fused_attention(value, table_of(shapes, value.device), locations, weights, points_first)


def table_of(shapes: Shapes, device: torch.device) -> Tensor:
    """`level_table`, made once for each device."""
    # A graph makes its own table: a replayed CUDA graph may not read memory that a cache owns.
    captured = device.type == "cuda" and torch.cuda.is_current_stream_capturing()
    table = level_table if captured or torch.compiler.is_compiling() else _kept_table
    return table(tuple(shapes), device)


def level_table(shapes: Shapes, device: torch.device) -> Tensor:
    """(L, 3) int32 on the device: height, width and first place of each level; by fills, without a copy."""
    numbers, start = [], 0
    for height, width in shapes:
        numbers += [height, width, start]
        start += height * width
    return torch.cat([torch.full((1,), n, dtype=torch.int32, device=device) for n in numbers]).view(-1, 3)


@lru_cache(maxsize=256)
def _kept_table(shapes: Shapes, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return level_table(shapes, device)


@torch.library.custom_op("maskshards::fused_attention", mutates_args=())
def fused_attention(
    value: Tensor, table: Tensor, locations: Tensor, weights: Tensor, points_first: bool
) -> Tensor:
    """(B, Q, M * D) of value's dtype; `table` of `level_table`, the rest of `deformable_attention_kernel`."""
    from maskshards.train.model.ops.kernels.deformable import forward

    return forward(value, table, locations, weights, points_first)


@torch.library.custom_op("maskshards::fused_attention_backward", mutates_args=())
def fused_attention_backward(
    grad: Tensor, value: Tensor, table: Tensor, locations: Tensor, weights: Tensor, points_first: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of value, locations and weights, like them, from grad (B, Q, M * D); no further ones."""
    from maskshards.train.model.ops.kernels.deformable import backward

    return backward(grad, value, table, locations, weights, points_first)


@fused_attention.register_fake
def _(value: Tensor, table: Tensor, locations: Tensor, weights: Tensor, points_first: bool) -> Tensor:
    batch, _, heads, width = value.shape
    return value.new_empty((batch, weights.shape[4 if points_first else 1], heads * width))


@fused_attention_backward.register_fake
def _(
    grad: Tensor, value: Tensor, table: Tensor, locations: Tensor, weights: Tensor, points_first: bool
) -> tuple[Tensor, Tensor, Tensor]:
    inputs = (value, locations, weights)
    of_value, of_locations, of_weights = (tensor.new_empty(tensor.shape) for tensor in inputs)
    return of_value, of_locations, of_weights


def _keep_inputs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.points_first = inputs
    ctx.save_for_backward(*tensors)


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    of_value, of_locations, of_weights = fused_attention_backward(grad, *ctx.saved_tensors, ctx.points_first)
    return of_value, None, of_locations, of_weights, None


fused_attention.register_autograd(_gradients, setup_context=_keep_inputs)
