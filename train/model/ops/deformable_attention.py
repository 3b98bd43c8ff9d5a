"""Multi-scale deformable attention (Zhu et al. 2020, arXiv 2010.04159): queries sample learned places.

For query q and head m, out = sum over levels l and points k of weight[q, m, l, k] * value_l(location[q, m, l,
k]), read bilinearly, zero outside the map. Coordinates and weights are float32 whatever the values are:
bfloat16 coordinates would make pixels of a large map unreachable. Shapes are Python ints, so that nothing
waits for a device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskshards.train.model.ops.autocast_norms import to_autocast
from maskshards.train.model.ops.deformable_fused import deformable_attention_kernel
from maskshards.train.model.ops.deformable_sparse import sparse_attention
from maskshards.train.model.ops.fused import kernels_fit

SAMPLED_BUDGET = 1 << 26  # sampled features of one level held at a time, elements; beyond it image by image
KEPT_BUDGET = 1 << 22  # sampled features of a layer that may wait for the backward pass, elements

BILINEAR, ZEROS = 0, 0  # what grid_sample's operators call its mode and padding

Shapes = tuple[tuple[int, int], ...]  # (height, width) of each level


def deformable_attention(
    value: Tensor,
    shapes: Shapes,
    locations: Tensor,
    weights: Tensor,
    *,
    fused: bool = True,
    resample: bool = True,
) -> Tensor:
    """Weighted bilinear samples: (B, Q, M * D) of value's dtype.

    value (B, S, M, D): S = sum of h * w over `shapes`, levels back to back, row-major. locations
    (B, Q, M, L, P, 2): (x, y) as shares of the level's width and height, where pixel i's centre lies at
    (i + 0.5) / size. weights (B, Q, M, L, P). Differentiable in all three tensors. `fused` takes the Triton
    kernels where they can run; elsewhere `resample` lets large inputs be sampled again for the backward pass
    instead of keeping all that was sampled.
    """
    if fused and kernels_fit(value):
        return deformable_attention_kernel(value, shapes, locations, weights)
    if torch.compiler.is_exporting():  # budgets would tie the program to one batch size
        return _all_levels(value, shapes, locations, weights).to(value.dtype)
    wants_gradient = value.requires_grad or locations.requires_grad or weights.requires_grad
    large = locations.numel() // 2 * value.shape[-1] > KEPT_BUDGET
    if resample and large and torch.is_grad_enabled() and wants_gradient:
        sides = [side for shape in shapes for side in shape]
        return resampled_attention(value, sides, locations, weights)
    return _in_groups(value, shapes, locations, weights)


def _image_groups(value: Tensor, locations: Tensor) -> list[slice]:
    """Consecutive images whose sampled features of one level fit the budget; at least one image each."""
    batch, queries, heads, _, points, _ = locations.shape
    step = max(1, SAMPLED_BUDGET // max(1, queries * heads * points * value.shape[-1]))
    return [slice(start, start + step) for start in range(0, batch, step)]


def _in_groups(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    groups = _image_groups(value, locations)
    parts = [_all_levels(value[g], shapes, locations[g], weights[g]) for g in groups]
    return (parts[0] if len(parts) == 1 else torch.cat(parts)).to(value.dtype)


def _all_levels(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    batch, _, heads, width = value.shape
    grids, shares = _level_first(locations, weights)
    levels = value.split([h * w for h, w in shapes], dim=1)
    # Unbound, not indexed: the gradient of an index is a whole tensor of zeros with one slice filled.
    parts = map(sample_level, levels, shapes, grids.unbind(0), shares.unbind(0))
    out = next(parts)
    for part in parts:
        out = out + part
    return out.view(batch, heads * width, -1).transpose(1, 2)


def _level_first(locations: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """(L, B * M, P, Q, 2) places counted from -1 to 1, and (L, B * M, P, Q) weights: one copy for all levels.

    Queries stand last, so that the sum over the few points runs along whole rows.
    """
    grids = (2 * locations - 1).permute(3, 0, 2, 4, 1, 5).flatten(1, 2)
    return grids, weights.permute(3, 0, 2, 4, 1).flatten(1, 2)


def sample_level(value: Tensor, shape: tuple[int, int], grid: Tensor, share: Tensor) -> Tensor:
    """One level's part of the sum, (B * M, D, Q) of the grid's dtype.

    value (B, h * w, M, D), grid (B * M, P, Q, 2), share (B * M, P, Q).
    """
    sampled = _sample(_as_maps(value, shape, grid.dtype), grid)
    return (sampled * share.unsqueeze(1).to(sampled.dtype)).sum(2)


def _as_maps(value: Tensor, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """(B * M, D, h, w) of the coordinates' `dtype`, since grid_sample wants one type."""
    return value.permute(0, 2, 3, 1).flatten(0, 1).unflatten(2, shape).to(dtype)


def _sample(maps: Tensor, grid: Tensor) -> Tensor:
    """(B * M, D, P, Q)."""
    return F.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


@torch.library.custom_op("maskshards::resampled_attention", mutates_args=())
def resampled_attention(value: Tensor, sides: Sequence[int], locations: Tensor, weights: Tensor) -> Tensor:
    """`deformable_attention` that keeps its inputs only and samples again, level by level, when going back.

    `sides` are the shapes in a row.

    Autograd would hold every sampled feature of every point: 528 MB an image and layer at width 2048. An
    operator rather than an autograd.Function, because torch.compile takes operators as they are.
    """
    return _in_groups(value, _paired(sides), locations, weights).contiguous()


@torch.library.custom_op("maskshards::resampled_attention_backward", mutates_args=())
def resampled_attention_backward(
    grad: Tensor, value: Tensor, sides: Sequence[int], locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of value, locations and weights, from grad (B, Q, M * D). Differentiable no further."""
    parts = [
        _sampled_again(value[g], _paired(sides), locations[g], weights[g], grad[g])
        for g in _image_groups(value, locations)
    ]
    of_value, of_locations, of_weights = (torch.cat(same).contiguous() for same in zip(*parts, strict=True))
    return of_value.to(value.dtype), of_locations, of_weights


@resampled_attention.register_fake
def _(value: Tensor, sides: Sequence[int], locations: Tensor, weights: Tensor) -> Tensor:
    batch, _, heads, width = value.shape
    return value.new_empty((batch, locations.shape[1], heads * width))


@resampled_attention_backward.register_fake
def _(
    grad: Tensor, value: Tensor, sides: Sequence[int], locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    inputs = (value, locations, weights)
    of_value, of_locations, of_weights = (tensor.new_empty(tensor.shape) for tensor in inputs)
    return of_value, of_locations, of_weights


def _keep_inputs(ctx: Any, inputs: tuple[Tensor, Sequence[int], Tensor, Tensor], output: Tensor) -> None:
    value, ctx.sides, locations, weights = inputs
    ctx.save_for_backward(value, locations, weights)


def _resample(ctx: Any, grad: Tensor) -> tuple[Tensor, None, Tensor, Tensor]:
    value, locations, weights = ctx.saved_tensors
    of_value, of_locations, of_weights = resampled_attention_backward(
        grad, value, ctx.sides, locations, weights
    )
    return of_value, None, of_locations, of_weights


resampled_attention.register_autograd(_resample, setup_context=_keep_inputs)


def _paired(sides: Sequence[int]) -> Shapes:
    return tuple(zip(sides[::2], sides[1::2], strict=True))


def _sampled_again(
    value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of value (of the dtype of locations), locations and weights, one level at a time."""
    batch, queries, heads, _, points, _ = locations.shape
    grids, shares = _level_first(locations, weights)
    grad = grad.transpose(1, 2).reshape(batch * heads, -1, queries).to(grids.dtype)
    of_values, of_grids, of_shares = [], [], []
    levels = value.split([h * w for h, w in shapes], dim=1)
    for level, shape, grid, share in zip(levels, shapes, grids, shares, strict=True):
        maps = _as_maps(level, shape, grid.dtype)
        of_shares.append((grad.unsqueeze(2) * _sample(maps, grid)).sum(1).to(share.dtype))
        of_sampled = grad.unsqueeze(2) * share.unsqueeze(1).to(grad.dtype)
        of_maps, of_grid = torch.ops.aten.grid_sampler_2d_backward(
            of_sampled, maps, grid, BILINEAR, ZEROS, False, (True, True)
        )
        of_values.append(of_maps.flatten(2).unflatten(0, (batch, heads)).permute(0, 3, 1, 2))
        of_grids.append(of_grid)
    of_locations = torch.stack(of_grids).view(-1, batch, heads, points, queries, 2).permute(1, 4, 2, 0, 3, 5)
    of_weights = torch.stack(of_shares).view(-1, batch, heads, points, queries).permute(1, 4, 2, 0, 3)
    return torch.cat(of_values, 1), 2 * of_locations, of_weights


class DeformableAttention(nn.Module):
    """Projections around `deformable_attention`, with the reference's parameter names.

    `width` channels in and out; values have `width * value_ratio` channels over `num_heads` heads. `fused`
    False keeps to the plain path, for comparison and for export; `resample` is that path's.
    """

    fused: bool = True
    resample: bool = True
    points_first: bool = False  # how the kernels get coordinates; which way is quicker is not measured

    def __init__(
        self, width: int, num_levels: int, num_heads: int = 16, num_points: int = 4, value_ratio: float = 1.0
    ) -> None:
        super().__init__()
        self.num_heads, self.num_levels, self.num_points = num_heads, num_levels, num_points
        value_width = int(width * value_ratio)
        self.sampling_offsets = nn.Linear(width, num_heads * num_levels * num_points * 2)
        self.attention_weights = nn.Linear(width, num_heads * num_levels * num_points)
        self.value_proj = nn.Linear(width, value_width)
        self.output_proj = nn.Linear(value_width, width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Heads look in evenly spread directions, point k at k + 1 pixels; all points weigh the same."""
        nn.init.zeros_(self.sampling_offsets.weight)
        angles = torch.arange(self.num_heads, dtype=torch.float32) * (2 * math.pi / self.num_heads)
        directions = torch.stack((angles.cos(), angles.sin()), -1)
        directions = directions / directions.abs().amax(-1, keepdim=True)
        steps = torch.arange(1, self.num_points + 1, dtype=torch.float32)
        bias = directions[:, None, None] * steps[:, None]  # (M, 1, P, 2)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(bias.expand(-1, self.num_levels, -1, -1).flatten())
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for layer in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self,
        query: Tensor,
        references: Tensor,
        features: Tensor,
        shapes: Shapes,
        position: Tensor | None = None,
    ) -> Tensor:
        """(B, Q, width) from query (B, Q, width) and features (B, S, width), S places over `shapes`.

        references (Q, 2), float32 or float64: where each query stands, (x, y) in 0..1. `position`
        (Q, width) is added to the queries of every image.
        """
        grid = (self.num_heads, self.num_levels, self.num_points)
        query = to_autocast(query)
        value = self.value_proj(features).unflatten(-1, (self.num_heads, -1))
        exact = references.dtype
        # Offsets are in pixels of their level. Arithmetic on flat rows: broadcasting over pairs is slow.
        repeats = self.num_points * self.num_heads
        steps = 1 / level_sizes(shapes, references.device, exact)
        steps = steps[:, None].expand(-1, self.num_points, -1).flatten().repeat(self.num_heads)
        places = references.repeat(1, repeats * self.num_levels)
        fused = self.fused and kernels_fit(value)
        if value.device.type == "cpu" and self.resample and not fused and not torch.compiler.is_compiling():
            projected = self._projected(query, position, exact, points_first=True)
            return self.output_proj(sparse_attention(value, shapes, projected, places, steps))
        if self.points_first and fused:
            projected = self._projected(query, position, exact, points_first=True)
            offsets, weights = projected.split([len(steps), len(steps) // 2], 1)
            locations = torch.addcmul(places.t(), offsets, steps[:, None]).unflatten(1, (*grid, 2))
            weights = weights.unflatten(1, (grid[0], -1)).softmax(2).unflatten(2, grid[1:])
            sampled = deformable_attention_kernel(value, shapes, locations, weights, points_first=True)
            return self.output_proj(sampled)
        offsets, weights = self._projected(query, position, exact).split([len(steps), len(steps) // 2], -1)
        locations = torch.addcmul(places, offsets, steps).unflatten(-1, (*grid, 2))
        weights = weights.unflatten(-1, (grid[0], -1)).softmax(-1).unflatten(-1, grid[1:])
        return self.output_proj(
            deformable_attention(value, shapes, locations, weights, fused=self.fused, resample=self.resample)
        )

    def _projected(
        self, query: Tensor, position: Tensor | None, exact: torch.dtype, points_first: bool = False
    ) -> Tensor:
        """(B, Q, 3 * M * L * P), or with its last two sides exchanged, in type `exact`.

        What `sampling_offsets` and then `attention_weights` say of the queries.

        In one product: the queries are read once, and their gradient is written once. The position's share is
        added to what comes out, not to what goes in: it is the same for all images, and a sum of the
        queries' size would be written, and kept for the backward pass.
        """
        both = (self.sampling_offsets, self.attention_weights)
        weight, bias = torch.cat([layer.weight for layer in both]), torch.cat([layer.bias for layer in both])
        if points_first:
            each = weight.expand(len(query), -1, -1)
            projected = torch.baddbmm(bias[:, None], each, query.transpose(1, 2))
            of_position = None if position is None else weight @ position.t()
        else:
            projected = F.linear(query, weight, bias)
            of_position = None if position is None else F.linear(position, weight)
        # one pass either way: an addition of two types reads the lower one and writes the higher one
        return projected.to(exact) if of_position is None else projected + of_position.to(exact)


def level_sizes(shapes: Shapes, device: torch.device, dtype: torch.dtype) -> Tensor:
    """(L, 2): width and height of each level, filled in on the device (a copy from the host would wait)."""
    sides = [side for height, width in shapes for side in (width, height)]
    return torch.stack([torch.full((), side, device=device, dtype=dtype) for side in sides]).view(-1, 2)


def reference_points(shapes: Shapes, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """(S, 2): the centre of every place of every level, (x, y) in 0..1, levels back to back, row-major."""
    levels = []
    for height, width in shapes:
        y = (torch.arange(height, device=device, dtype=dtype) + 0.5) / height
        x = (torch.arange(width, device=device, dtype=dtype) + 0.5) / width
        levels.append(torch.stack((x.expand(height, -1), y[:, None].expand(-1, width)), -1).flatten(0, 1))
    return torch.cat(levels)
