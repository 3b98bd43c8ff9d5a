"""Multi-scale deformable attention (Zhu et al. 2020, arXiv 2010.04159): each query samples a few learned
places.

For query q and head m, out = sum over levels l and points k of weight[q, m, l, k] * value_l(location[q, m, l,
k]), read bilinearly, zero outside the map. Coordinates and weights are float32 whatever the values are:
bfloat16 coordinates would make pixels of a large map unreachable. Shapes are Python ints, so that nothing
waits for a device.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SAMPLED_BUDGET = 1 << 26  # sampled features held at one time, elements; beyond it images go one after another

Shapes = tuple[tuple[int, int], ...]  # (height, width) of each level


def deformable_attention(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """Weighted bilinear samples: (B, Q, M * D) of value's dtype.

    value (B, S, M, D): S = sum of h * w over `shapes`, levels back to back, row-major. locations (B, Q, M, L,
    P, 2): (x, y) as shares of the level's width and height, where pixel i's centre lies at (i + 0.5) / size.
    weights (B, Q, M, L, P). Differentiable in all three tensors.
    """
    if torch.is_grad_enabled() and (value.requires_grad or locations.requires_grad or weights.requires_grad):
        return _Resampled.apply(value, shapes, locations, weights)
    return _all_levels(value, shapes, locations, weights)


def _image_groups(value: Tensor, locations: Tensor) -> list[slice]:
    """Consecutive images whose sampled features of one level fit the budget; at least one image each."""
    batch, queries, heads, _, points, _ = locations.shape
    step = max(1, SAMPLED_BUDGET // max(1, queries * heads * points * value.shape[-1]))
    return [slice(start, start + step) for start in range(0, batch, step)]


def _all_levels(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    groups = _image_groups(value, locations)
    parts = [_sum_of_levels(value[g], shapes, locations[g], weights[g]) for g in groups]
    return (parts[0] if len(parts) == 1 else torch.cat(parts)).to(value.dtype)


def _sum_of_levels(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    levels = value.split([h * w for h, w in shapes], dim=1)
    out = sample_level(levels[0], shapes[0], locations[:, :, :, 0], weights[:, :, :, 0])
    for i in range(1, len(shapes)):
        out = out + sample_level(levels[i], shapes[i], locations[:, :, :, i], weights[:, :, :, i])
    return out


def sample_level(value: Tensor, shape: tuple[int, int], locations: Tensor, weights: Tensor) -> Tensor:
    """One level's share, (B, Q, M * D) of the coordinates' dtype.

    value (B, h * w, M, D), locations (B, Q, M, P, 2), weights (B, Q, M, P).
    """
    batch, _, heads, width = value.shape
    maps = value.permute(0, 2, 3, 1).reshape(batch * heads, width, *shape)
    grid = (2 * locations - 1).transpose(1, 2).flatten(0, 1)  # (B * M, Q, P, 2), from -1 to 1
    maps = maps.to(grid.dtype)  # grid_sample wants one type; the coordinates decide it
    sampled = F.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    share = weights.transpose(1, 2).flatten(0, 1).unsqueeze(1).to(sampled.dtype)  # (B * M, 1, Q, P)
    out = (sampled * share).sum(-1)  # (B * M, D, Q)
    return out.view(batch, heads * width, -1).transpose(1, 2)


class _Resampled(torch.autograd.Function):
    """Keeps the inputs only and samples again, level by level, in the backward pass.

    Autograd would hold every sampled feature of every point: 528 MB an image and layer at width 2048.
    """

    @staticmethod
    def forward(ctx: Any, value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
        ctx.shapes = shapes
        ctx.save_for_backward(value, locations, weights)
        return _all_levels(value, shapes, locations, weights)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, Tensor, Tensor]:
        value, locations, weights = ctx.saved_tensors
        grads = tuple(torch.empty_like(t) for t in ctx.saved_tensors)
        starts = [0]
        for h, w in ctx.shapes:
            starts.append(starts[-1] + h * w)
        for g in _image_groups(value, locations):
            for i, shape in enumerate(ctx.shapes):
                place = slice(starts[i], starts[i + 1])
                views = (value[g, place], locations[g, :, :, i], weights[g, :, :, i])
                leaves = [view.detach().requires_grad_() for view in views]
                with torch.enable_grad():
                    out = sample_level(leaves[0], shape, leaves[1], leaves[2])
                new = torch.autograd.grad(out, leaves, grad[g].to(out.dtype))
                grads[0][g, place], grads[1][g, :, :, i], grads[2][g, :, :, i] = new
        return grads[0], None, grads[1], grads[2]


class DeformableAttention(nn.Module):
    """Projections around `deformable_attention`, with the reference's parameter names.

    `width` channels in and out; values have `width * value_ratio` channels over `num_heads` heads.
    """

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

    def forward(self, query: Tensor, references: Tensor, features: Tensor, shapes: Shapes) -> Tensor:
        """(B, Q, width) from query (B, Q, width) and features (B, S, width), S places over `shapes`.

        references (Q, 2), float32 or float64: where each query stands, (x, y) in 0..1.
        """
        grid = (self.num_heads, self.num_levels, self.num_points)
        value = self.value_proj(features).unflatten(-1, (self.num_heads, -1))
        coordinate = references.dtype
        offsets = self.sampling_offsets(query).to(coordinate).unflatten(-1, (*grid, 2))
        weights = self.attention_weights(query).to(coordinate).unflatten(-1, (grid[0], -1)).softmax(-1)
        sizes = level_sizes(shapes, references.device, coordinate)
        locations = references[:, None, None, None] + offsets / sizes[:, None]
        return self.output_proj(
            deformable_attention(value, shapes, locations, weights.unflatten(-1, grid[1:]))
        )


def level_sizes(shapes: Shapes, device: torch.device, dtype: torch.dtype) -> Tensor:
    """(L, 2): width and height of each level, filled in on the device (a copy from the host would wait for
    it).
    """
    sides = [
        torch.full((1,), side, device=device, dtype=dtype)
        for height, width in shapes
        for side in (width, height)
    ]
    return torch.cat(sides).view(-1, 2)


def reference_points(shapes: Shapes, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """(S, 2): the centre of every place of every level, (x, y) in 0..1, levels back to back, row-major."""
    levels = []
    for height, width in shapes:
        y = (torch.arange(height, device=device, dtype=dtype) + 0.5) / height
        x = (torch.arange(width, device=device, dtype=dtype) + 0.5) / width
        levels.append(torch.stack((x.expand(height, -1), y[:, None].expand(-1, width)), -1).flatten(0, 1))
    return torch.cat(levels)
