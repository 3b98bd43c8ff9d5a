"""Deformable attention as a product with a sparse matrix, for processors.

Row (b, q, m) of the matrix has an entry for each corner of each point that query q samples under head m: the
column is the place (b, s, m) that it reads, the entry the point's weight times the corner's bilinear share.
Output and gradients are then products with this matrix or on its pattern, which libraries have: no sampled
feature stands in memory by itself, and the channels of a place are read together.

Letters: B image, Q query, M head, L level, P point, D width of a head, S place. Points come before queries in
memory, so that softmax and arithmetic go along whole rows; the matrix wants queries first.
"""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import scipy.sparse
import torch
import torch.nn.functional as F
from torch import Tensor

from maskshards.train.model.ops.bilinear import Neighbours, neighbours

CORNERS = 4
BUDGET = 1 << 23  # entries at a time; some 40 bytes each while the matrix is made
KEPT_BUDGET = 1 << 23  # entries of a layer that may wait for the backward pass, 8 bytes each

Shapes = tuple[tuple[int, int], ...]  # (height, width) of each level


def sparse_attention(
    value: Tensor, shapes: Shapes, projected: Tensor, places: Tensor, steps: Tensor
) -> Tensor:
    """(B, Q, M * D) of value's type.

    value (B, S, M, D) of any float type; projected (B, 3 * M * L * P, Q), of the coordinates' type: offsets
    in steps, two a point, then the weights before their softmax over a head's points. places
    (Q, 2 * M * L * P) and steps (2 * M * L * P,): a query's place and the size of a step, as shares of the
    level, without gradient.
    """
    entries = places.numel() // 2 * CORNERS  # of an image
    images, keep = max(1, BUDGET // entries), len(value) * entries <= KEPT_BUDGET
    groups = zip(value.split(images), projected.split(images), strict=True)
    parts = [_Attention.apply(*group, places, steps, shapes, keep) for group in groups]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, value: Tensor, projected: Tensor, places: Tensor, steps: Tensor, shapes: Shapes, keep: bool
    ) -> Tensor:
        batch, _, heads, width = value.shape
        points = len(steps) // (2 * heads * len(shapes))
        offsets, weights = projected.contiguous().split([len(steps), len(steps) // 2], 1)
        # Rounded as grid_sample's are: fresh heads look at exact centres, where the gradient has a step.
        spots = torch.addcmul(places.t(), offsets, steps[:, None]).mul_(2).sub_(1)
        spots = spots.unflatten(1, (heads, len(shapes) * points, 2))
        weights = weights.unflatten(1, (heads, -1)).softmax(2)
        columns, entries = _matrix(_neighbours(spots, shapes, points), weights, shapes, points)
        table = value.to(spots.dtype).reshape(-1, width)
        out = F.embedding_bag(columns, table, mode="sum", per_sample_weights=entries)
        ctx.shapes, ctx.points = shapes, points
        ctx.save_for_backward(value, spots, weights, steps, *((columns, entries) if keep else ()))
        return out.view(batch, -1, heads * width).to(value.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        value, spots, weights, steps, *kept = ctx.saved_tensors
        near = _neighbours(spots, ctx.shapes, ctx.points)
        columns, entries = kept or _matrix(near, weights, ctx.shapes, ctx.points)
        grad = grad.to(spots.dtype).reshape(-1, value.shape[-1])
        table = value.to(spots.dtype).reshape(-1, value.shape[-1])
        of_value = _transposed_product(columns, entries, grad, len(table)).view(value.shape)
        of_corners = _on_pattern(columns, grad, table).view(len(value), spots.shape[-1], -1)
        of_corners = _exchanged(of_corners).view(*weights.shape[:3], 2, 2, -1)  # of y, of x
        of_both = spots.new_empty(len(value), 3 * len(steps) // 2, spots.shape[-1])
        moved = of_both[:, : len(steps)].view(spots.shape)
        sides = _per_point(ctx.shapes, ctx.points, spots) * steps.view(*spots.shape[1:4], 1)
        for axis in (0, 1):
            (first, second), shares = of_corners.unbind(3 + axis), near.share[1 - axis].unbind(3)
            of_axis = torch.mul(first, shares[0].unsqueeze(3)).addcmul_(second, shares[1].unsqueeze(3))
            behind, ahead = (of_axis * near.inside[axis]).unbind(3)
            torch.mul((ahead - behind).mul_(weights), sides[:, :, axis], out=moved[:, :, :, axis])
        of_weights = (of_axis * near.share[1]).sum(3)
        before_softmax = torch._softmax_backward_data(of_weights, weights, 2, weights.dtype)
        of_both[:, len(steps) :] = before_softmax.flatten(1, 2)
        return of_value.to(value.dtype), of_both, *[None] * 4


def _per_point(shapes: Shapes, points: int, like: Tensor) -> Tensor:
    """(L * P, 2, 1): width and height of each point's level."""
    sides = [[width, height] for height, width in shapes for _ in range(points)]
    return torch.tensor(sides, dtype=like.dtype).unsqueeze(-1)


def _neighbours(spots: Tensor, shapes: Shapes, points: int) -> Neighbours:
    """Of spots (B, M, L * P, 2, Q), counted from -1 to 1: along x, then y, (2, B, M, L * P, 2, Q) each."""
    sides = _per_point(shapes, points, spots)
    pixels = (spots + 1).mul_(sides / 2).sub_(0.5).movedim(3, 0).unsqueeze(4)
    return neighbours(pixels, (sides - 1).movedim(1, 0)[:, None, None, :, None], dim=-2)


def _matrix(near: Neighbours, weights: Tensor, shapes: Shapes, points: int) -> tuple[Tensor, Tensor]:
    """Columns, int32, and entries of the matrix: (B * Q * M, L * P * 4) each."""
    batch, heads, sampled, queries = weights.shape
    widths = torch.tensor([width for _, width in shapes for _ in range(points)], dtype=torch.int32)
    sizes = [height * width for height, width in shapes]
    starts = torch.tensor([sum(sizes[:level]) for level in range(len(sizes)) for _ in range(points)])
    first = torch.arange(batch)[:, None, None] * sum(sizes) + starts  # (B, 1, L * P)
    first = (first * heads + torch.arange(heads)[:, None]).int()[..., None, None]
    rows = (near.place[1] * (widths[:, None, None] * heads)).add_(first)
    shape = (batch, heads, sampled, 2, 2, queries)  # neighbours along y, then along x
    columns, entries = near.place.new_empty(shape), weights.new_empty(shape)
    torch.add(rows.unsqueeze(4), near.place[0].unsqueeze(3), alpha=heads, out=columns)
    torch.mul((near.share[1] * weights.unsqueeze(3)).unsqueeze(4), near.share[0].unsqueeze(3), out=entries)
    columns, entries = (_exchanged(corners.flatten(1, 4)) for corners in (columns, entries))
    return columns.view(batch * queries * heads, -1), entries.view(batch * queries * heads, -1)


def _exchanged(tensor: Tensor) -> Tensor:
    """(B, X, Y) as (B, Y, X) in memory. Torch has a quick copy for this, of one matrix at a time."""
    exchanged = tensor.new_empty(len(tensor), tensor.shape[2], tensor.shape[1])
    for target, source in zip(exchanged, tensor, strict=True):
        target.copy_(source.t())
    return exchanged


def _transposed_product(columns: Tensor, entries: Tensor, right: Tensor, size: int) -> Tensor:
    """(size, D): the matrix, transposed, times right (rows, D). Torch would sort the matrix for it."""
    matrix = scipy.sparse.csr_matrix(
        (entries.flatten().numpy(), columns.flatten().numpy(), _row_starts(columns).numpy()),
        shape=(len(columns), size),
    )
    return torch.from_numpy(matrix.T @ right.numpy())


def _on_pattern(columns: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """left (rows, D) times right (columns, D) transposed, where the matrix has entries: (entries,)."""
    _silence_beta_warning()
    matrix = torch.sparse_csr_tensor(
        _row_starts(columns), columns.flatten(), left.new_zeros(columns.numel()), (len(left), len(right)),
        check_invariants=False,
    )  # fmt: skip
    return torch.sparse.sampled_addmm(matrix, left, right.t(), beta=0, out=matrix).values()


def _row_starts(columns: Tensor) -> Tensor:
    rows, width = columns.shape
    return torch.arange(0, rows * width + 1, width, dtype=torch.int32)


@cache
def _silence_beta_warning() -> None:
    """Torch warns once in a process that its sparse rows are new; that is no user's concern."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.sparse_csr_tensor([0, 1], [0], [1.0], (1, 1), check_invariants=False)
