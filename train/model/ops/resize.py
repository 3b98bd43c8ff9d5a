"""Bilinear resizing in the tensor's own type.

CUDA's autocast makes every resize float32: at stride 4 a map of 67 MB an image (width 2048) becomes 134, and
what is added to it too. The kernel itself weighs in float32 and rounds once whatever it is given.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def resized(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, C, *size) from maps (B, C, h, w), of their type: bilinear, corners not aligned."""
    with torch.autocast(maps.device.type, enabled=False):
        return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)
