"""The two pixels around each place along one side of a map, and the share of each in a bilinear sample.

As grid_sample has it with zeros for padding: pixel i's centre lies at i, and beyond the ends lie zeros.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Neighbours(NamedTuple):
    """The pixel below each place and the one above it; all three of one shape."""

    place: Tensor  # int32, inside of the map
    inside: Tensor  # 1 where the pixel lies inside, else 0; of the places' type
    share: Tensor  # of the sample, in 0..1; 0 outside


def neighbours(pixels: Tensor, last: Tensor | int, dim: int) -> Neighbours:
    """The two pixels around each of `pixels`, places along a side that ends with pixel `last`.

    `pixels`, without gradient, may have any shape with a side of 1 at `dim` (negative), where the two come to
    stand; `last` is one for all or a tensor that broadcasts.

    Memory is in the order of the shape, however that of `pixels` is. A place that is NaN has pixel 0.
    """
    shape = list(pixels.shape)
    shape[dim] = 2
    steps = torch.arange(2, dtype=pixels.dtype, device=pixels.device).view(2, *[1] * (-dim - 1))
    both = torch.add(pixels.floor(), steps, out=pixels.new_empty(shape))
    place = both.fmax(both.new_zeros(())).clamp(max=last)  # fmax turns NaN into 0, clamp would keep it
    inside = torch.eq(place, both, out=torch.empty_like(both))  # booleans are slow to multiply with
    share = torch.sub(both, pixels, out=both).abs_().neg_().add_(1).mul_(inside)
    return Neighbours(place.int(), inside, share)
