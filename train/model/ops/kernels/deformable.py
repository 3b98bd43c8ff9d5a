"""Deformable attention as two fused Triton kernels: nothing that is sampled ever reaches memory.

One program handles a block of queries of one head and image; it walks over levels and points, reads the
four neighbours of each point straight from the values and sums in registers. Values may be float32,
bfloat16 or float16; coordinates, weights and sums are float32. The value gradient is gathered with
float32 atomics, so its last bits depend on the order in which programs finish; `deformable_sorted` has
another way, for wide heads.

Coordinates and weights come in one of two layouts. By query, as the projection writes them: a query's points
stand together, so the queries of a program read every 32 bytes that hold their numbers again for each point.
By point (POINTS_FIRST): the queries of a program stand side by side, and one read brings all of them.

Letters: B image, Q query, M head, L level, P point, D width of a head, S places of all levels.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from maskshards.train.model.ops.kernels.deformable_sorted import fits, value_gradient

FLOATS_PER_PROGRAM = (
    1024  # of one (queries, head width) tile: 8 a thread, one 16-byte read of bfloat16 values
)
MAX_BLOCK_QUERIES = 64
OPTIONS = {"num_warps": 4, "enable_fp_fusion": True}
# Head width from which the value gradient is sorted and gathered instead of added by atomics; None: never.
# Predicted to pay from 64 on, not measured: `maskshards bench gpu` times both.
SORTED_FROM_WIDTH: int | None = None


def forward(
    value: Tensor, table: Tensor, locations: Tensor, weights: Tensor, points_first: bool = False
) -> Tensor:
    """(B, Q, M * D) from value (B, S, M, D), table (L, 3) of heights, widths and first places, and points.

    locations (B, Q, M, L, P, 2) and weights (B, Q, M, L, P), or with `points_first` (B, M, L, P, 2, Q) and
    (B, M, L, P, Q).
    """
    value, locations, weights = value.contiguous(), locations.contiguous(), weights.contiguous()
    batch, _, heads, width = value.shape
    queries = weights.shape[4 if points_first else 1]
    out = value.new_empty((batch, queries, heads * width))
    _launch(_forward, value, table, locations, weights, out, POINTS_FIRST=points_first)
    return out


def backward(
    grad: Tensor, value: Tensor, table: Tensor, locations: Tensor, weights: Tensor, points_first: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of value, locations and weights in their dtypes and layouts, from grad (B, Q, M * D)."""
    value, locations, weights = value.contiguous(), locations.contiguous(), weights.contiguous()
    grad = grad.contiguous()
    grad_locations, grad_weights = torch.empty_like(locations), torch.empty_like(weights)
    by_sorting = SORTED_FROM_WIDTH is not None and value.shape[3] >= SORTED_FROM_WIDTH and fits(locations)
    shape = (1,) if by_sorting else value.shape  # nothing is added to it where the shares are sorted
    grad_value = torch.zeros(shape, dtype=torch.float32, device=value.device)
    rest = grad, grad_value, grad_locations, grad_weights
    options = {"ADD_VALUES": not by_sorting, "POINTS_FIRST": points_first}
    _launch(_backward, value, table, locations, weights, *rest, **options)
    if by_sorting:
        of_value = value_gradient(grad, value, table, locations, weights, points_first)
        return of_value, grad_locations, grad_weights
    return grad_value.to(value.dtype), grad_locations, grad_weights


def _launch(
    kernel: Any, value: Tensor, table: Tensor, locations: Tensor, weights: Tensor, *rest: Tensor, **more: bool
) -> None:
    batch, places, heads, width = value.shape
    if more["POINTS_FIRST"]:
        levels, points, queries = weights.shape[2:]
    else:
        queries, levels, points = weights.shape[1], weights.shape[3], weights.shape[4]
    block_queries, block_width = block_sizes(width)
    programs = triton.cdiv(queries, block_queries) * batch * heads
    if programs == 0:
        return
    kernel[(programs,)](  # one axis, for the others of a CUDA grid end at 65,535: 4,095 images of 16 heads
        value, table, locations, weights, *rest, queries, places,
        M=heads, D=width, L=levels, P=points, BLOCK_Q=block_queries, BLOCK_D=block_width, **more, **OPTIONS,
    )  # fmt: skip


def block_sizes(width: int) -> tuple[int, int]:
    """Queries and channels of one program's tile, both powers of two; `width` channels fit."""
    block_width = triton.next_power_of_2(width)
    return max(1, min(MAX_BLOCK_QUERIES, FLOATS_PER_PROGRAM // block_width)), block_width


@triton.jit
def _place(num_queries, M: tl.constexpr, BLOCK_Q: tl.constexpr):  # type: ignore[no-untyped-def]
    """This program's queries, image and head: blocks of queries in a row, then heads, then images."""
    blocks = tl.cdiv(num_queries, BLOCK_Q)
    query = tl.program_id(0) % blocks * BLOCK_Q + tl.arange(0, BLOCK_Q)
    of_head = tl.program_id(0) // blocks
    return query, (of_head // M).to(tl.int64), of_head % M


@triton.jit
def _index(query, image, head, at, num_queries, M: tl.constexpr, N: tl.constexpr, POINTS_FIRST: tl.constexpr):  # type: ignore[no-untyped-def]
    """Where x, y and weight of each query's point `at` of its N stand."""
    if POINTS_FIRST:
        weight = ((image * M + head) * N + at) * num_queries + query
        x = weight + ((image * M + head) * N + at) * num_queries
        y = x + num_queries
    else:
        weight = ((image * num_queries + query) * M + head) * N + at
        x = 2 * weight
        y = x + 1
    return x, y, weight


@triton.jit
def _neighbour(values, x, y, width, height, place_stride, channel, in_channel, in_query):  # type: ignore[no-untyped-def]
    """The pixel (x, y) of each query: its address, whether it exists, its channels as float32 (else 0)."""
    exists = in_query & (x >= 0) & (x < width) & (y >= 0) & (y < height)
    place = tl.where(exists, y, 0.0).to(tl.int32) * width + tl.where(exists, x, 0.0).to(tl.int32)
    offset = place.to(tl.int64)[:, None] * place_stride + channel[None, :]
    mask = exists[:, None] & in_channel[None, :]
    return offset, mask, tl.load(values + offset, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _forward(  # type: ignore[no-untyped-def]
    value, table, locations, weights, out, num_queries, num_places,
    M: tl.constexpr, D: tl.constexpr, L: tl.constexpr, P: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_D: tl.constexpr, POINTS_FIRST: tl.constexpr,
):  # fmt: skip
    """out (B, Q, M, D): weighted bilinear samples."""
    query, image, head = _place(num_queries, M, BLOCK_Q)
    channel = tl.arange(0, BLOCK_D)
    in_query, in_channel = query < num_queries, channel < D
    row = (image * num_queries + query) * M + head
    total = tl.zeros((BLOCK_Q, BLOCK_D), dtype=tl.float32)
    for level in range(L):
        height, width = tl.load(table + 3 * level), tl.load(table + 3 * level + 1)
        values = value + ((image * num_places + tl.load(table + 3 * level + 2)) * M + head) * D
        for point in range(P):
            at_x, at_y, at_weight = _index(
                query, image, head, level * P + point, num_queries, M, L * P, POINTS_FIRST
            )
            x = tl.load(locations + at_x, mask=in_query, other=0.0).to(tl.float32) * width - 0.5
            y = tl.load(locations + at_y, mask=in_query, other=0.0).to(tl.float32) * height - 0.5
            weight = tl.load(weights + at_weight, mask=in_query, other=0.0).to(tl.float32)
            left, top = tl.floor(x), tl.floor(y)
            right, low = x - left, y - top  # shares of the right and of the lower neighbours
            _, _, v00 = _neighbour(values, left, top, width, height, M * D, channel, in_channel, in_query)
            _, _, v01 = _neighbour(values, left + 1, top, width, height, M * D, channel, in_channel, in_query)
            _, _, v10 = _neighbour(values, left, top + 1, width, height, M * D, channel, in_channel, in_query)
            _, _, v11 = _neighbour(
                values, left + 1, top + 1, width, height, M * D, channel, in_channel, in_query
            )
            total += (weight * (1 - right) * (1 - low))[:, None] * v00 + (weight * right * (1 - low))[
                :, None
            ] * v01
            total += (weight * (1 - right) * low)[:, None] * v10 + (weight * right * low)[:, None] * v11
    place = row[:, None] * D + channel[None, :]
    tl.store(out + place, total.to(out.dtype.element_ty), mask=in_query[:, None] & in_channel[None, :])


@triton.jit
def _backward(  # type: ignore[no-untyped-def]
    value, table, locations, weights, grad_out, grad_value, grad_locations, grad_weights,
    num_queries, num_places,
    M: tl.constexpr, D: tl.constexpr, L: tl.constexpr, P: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_D: tl.constexpr, ADD_VALUES: tl.constexpr, POINTS_FIRST: tl.constexpr,
):  # fmt: skip
    """All three gradients; grad_value (B, S, M, D) float32 is added to, or left alone without ADD_VALUES."""
    query, image, head = _place(num_queries, M, BLOCK_Q)
    channel = tl.arange(0, BLOCK_D)
    in_query, in_channel = query < num_queries, channel < D
    row = (image * num_queries + query) * M + head
    mask = in_query[:, None] & in_channel[None, :]
    grad = tl.load(grad_out + row[:, None] * D + channel[None, :], mask=mask, other=0.0).to(tl.float32)
    for level in range(L):
        height, width = tl.load(table + 3 * level), tl.load(table + 3 * level + 1)
        first = ((image * num_places + tl.load(table + 3 * level + 2)) * M + head) * D
        values, grads = value + first, grad_value + first
        for point in range(P):
            at_x, at_y, at_weight = _index(
                query, image, head, level * P + point, num_queries, M, L * P, POINTS_FIRST
            )
            x = tl.load(locations + at_x, mask=in_query, other=0.0).to(tl.float32) * width - 0.5
            y = tl.load(locations + at_y, mask=in_query, other=0.0).to(tl.float32) * height - 0.5
            weight = tl.load(weights + at_weight, mask=in_query, other=0.0).to(tl.float32)
            left, top = tl.floor(x), tl.floor(y)
            right, low = x - left, y - top
            o00, m00, v00 = _neighbour(values, left, top, width, height, M * D, channel, in_channel, in_query)
            o01, m01, v01 = _neighbour(
                values, left + 1, top, width, height, M * D, channel, in_channel, in_query
            )
            o10, m10, v10 = _neighbour(
                values, left, top + 1, width, height, M * D, channel, in_channel, in_query
            )
            o11, m11, v11 = _neighbour(
                values, left + 1, top + 1, width, height, M * D, channel, in_channel, in_query
            )
            if ADD_VALUES:
                tl.atomic_add(
                    grads + o00, (weight * (1 - right) * (1 - low))[:, None] * grad, mask=m00, sem="relaxed"
                )
                tl.atomic_add(
                    grads + o01, (weight * right * (1 - low))[:, None] * grad, mask=m01, sem="relaxed"
                )
                tl.atomic_add(
                    grads + o10, (weight * (1 - right) * low)[:, None] * grad, mask=m10, sem="relaxed"
                )
                tl.atomic_add(grads + o11, (weight * right * low)[:, None] * grad, mask=m11, sem="relaxed")
            d00, d01 = tl.sum(grad * v00, axis=1), tl.sum(grad * v01, axis=1)
            d10, d11 = tl.sum(grad * v10, axis=1), tl.sum(grad * v11, axis=1)
            upper, lower = d00 * (1 - right) + d01 * right, d10 * (1 - right) + d11 * right
            grad_x = weight * width * ((d01 - d00) * (1 - low) + (d11 - d10) * low)
            grad_y = weight * height * (lower - upper)
            grad_weight = upper * (1 - low) + lower * low
            tl.store(grad_locations + at_x, grad_x.to(grad_locations.dtype.element_ty), mask=in_query)
            tl.store(grad_locations + at_y, grad_y.to(grad_locations.dtype.element_ty), mask=in_query)
            tl.store(grad_weights + at_weight, grad_weight.to(grad_weights.dtype.element_ty), mask=in_query)
