"""Sine position encoding of a feature map, as in DETR (Carion et al. 2020, arXiv 2005.12872)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

TEMPERATURE = 10000.0


def sine_position(
    shape: tuple[int, int], width: int, device: torch.device, dtype: torch.dtype = torch.float32
) -> Tensor:
    """(h * w, width): the first half of the channels encodes the row, the second the column.

    Rows and columns count from 1 and are scaled so that the last is 2 pi; each half alternates sine and
    cosine over width / 4 frequencies from 1 down to nearly 1 / TEMPERATURE. `width` is a multiple of 4.
    """
    height, columns = shape
    exponent = torch.arange(width // 4, device=device, dtype=dtype) * (4 / width)
    frequency = TEMPERATURE**-exponent
    waves = []
    for size in (height, columns):
        place = torch.arange(1, size + 1, device=device, dtype=dtype) / (size + 1e-6) * (2 * math.pi)
        angle = place[:, None] * frequency
        waves.append(torch.stack((angle.sin(), angle.cos()), -1).flatten(1))  # (size, width / 2)
    rows = waves[0][:, None].expand(-1, columns, -1)
    cols = waves[1][None].expand(height, -1, -1)
    return torch.cat((rows, cols), -1).flatten(0, 1)
