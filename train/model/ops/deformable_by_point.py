"""The plain deformable attention with a gradient of its own, for processors.

Autograd would carry the gradient of a coordinate through six tensors of the same size, most of them copies
into another order; here it is written once, where the projection behind it reads it. In memory a point's
queries stand together, so that softmax, sums and samples go along whole rows.

Letters: B image, Q query, M head, L level, P point, D width of a head, S place.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

BILINEAR, ZEROS = 0, 0  # what grid_sample's operators call its mode and padding

Shapes = tuple[tuple[int, int], ...]  # (height, width) of each level


def attention_by_point(
    value: Tensor,
    shapes: Shapes,
    projected: Tensor,
    places: Tensor,
    steps: Tensor,
    points: int,
    keep: bool,
) -> Tensor:
    """(B, Q, M * D) of value's type.

    value (B, S, M, D) of any float type; projected (B, 3 * M * L * P, Q), of the coordinates' type: offsets
    in steps, two a point, then the weights before their softmax over a head's points. places
    (Q, 2 * M * L * P) and steps (2 * M * L * P,): a query's place and the size of a step, as shares of the
    level, without gradient. `keep` holds what was sampled for the backward pass instead of sampling it again.
    """
    return _Attention.apply(value, projected, places, steps, shapes, points, keep)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, value: Tensor, projected: Tensor, places: Tensor, steps: Tensor, shapes: Shapes,
        points: int, keep: bool,
    ) -> Tensor:  # fmt: skip
        batch, _, heads, width = value.shape
        grid = (heads, len(shapes), points)
        offsets, weights = projected.contiguous().split([len(steps), len(steps) // 2], 1)
        # Rounded as the other way is: fresh heads look at exact centres, where the gradient has a step.
        spots = torch.addcmul(places.t(), offsets, steps[:, None]).mul_(2).sub_(1).unflatten(1, (*grid, 2))
        weights = weights.unflatten(1, (heads, -1)).softmax(2)
        out: Tensor | None = None
        kept = []
        for maps, spot, weight in _levels(value, spots, weights.unflatten(2, grid[1:]), shapes):
            sampled = torch.grid_sampler_2d(maps, spot, BILINEAR, ZEROS, False)
            part = (sampled * weight).sum(2)
            out = part if out is None else out.add_(part)
            kept.append(sampled)
        assert out is not None
        ctx.shapes, ctx.num_kept = shapes, len(kept) if keep else 0
        ctx.save_for_backward(value, spots, weights, steps, *(kept if keep else ()))
        return out.view(batch, heads * width, -1).transpose(1, 2).to(value.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        value, spots, weights, steps, *kept = ctx.saved_tensors
        batch, heads, levels, points, _, queries = spots.shape
        grad = grad.to(spots.dtype).transpose(1, 2).contiguous().view(batch * heads, -1, 1, queries)
        of_both = spots.new_empty(batch, 3 * len(steps) // 2, queries)
        of_offsets = of_both[:, : len(steps)].view(spots.shape)
        of_weights = torch.empty_like(weights)
        by_level = of_weights.view(batch, heads, levels, points, queries)
        scale = (2 * steps).view(heads, levels, points, 2, 1)
        parts = []
        inputs = _levels(value, spots, weights.unflatten(2, (levels, points)), ctx.shapes)
        for number, (maps, spot, weight) in enumerate(inputs):
            sampled = kept[number] if kept else torch.grid_sampler_2d(maps, spot, BILINEAR, ZEROS, False)
            by_level[:, :, number] = (sampled * grad).sum(1).unflatten(0, (batch, heads))
            of_maps, of_spot = torch.ops.aten.grid_sampler_2d_backward(
                grad * weight, maps, spot, BILINEAR, ZEROS, False, [True, True]
            )
            moved = of_spot.view(batch, heads, points, queries, 2).transpose(3, 4)
            torch.mul(moved, scale[:, number], out=of_offsets[:, :, number])
            parts.append(of_maps.view(batch, heads, of_maps.shape[1], -1))
        before_softmax = torch._softmax_backward_data(of_weights, weights, 2, weights.dtype)
        of_both[:, len(steps) :] = before_softmax.flatten(1, 2)
        of_value = torch.cat(parts, 3).permute(0, 3, 1, 2).to(value.dtype)
        return of_value, of_both, *[None] * 5


def _levels(
    value: Tensor, spots: Tensor, weights: Tensor, shapes: Shapes
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Level by level maps (B * M, D, h, w), spots (B * M, P, Q, 2) and weights (B * M, 1, P, Q)."""
    values = value.split([height * width for height, width in shapes], 1)
    for number, (level, shape) in enumerate(zip(values, shapes, strict=True)):
        maps = level.permute(0, 2, 3, 1).flatten(0, 1).unflatten(2, shape).to(spots.dtype)
        spot = spots[:, :, number].flatten(0, 1).transpose(2, 3)
        yield maps.contiguous(), spot, weights[:, :, number].flatten(0, 1)[:, None]
