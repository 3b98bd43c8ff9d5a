"""Pillow's two resize rules, for any device: antialiased bilinear for images, nearest for labels.

The image rule is the triangle filter of Pillow's Image.resize(BILINEAR), widened when shrinking. PyTorch's
antialiased interpolation uses the same filter; Pillow rounds to 8 bits between its two passes, which moves a
pixel by at most one grey level. The label rule is a table of source indices, made on the host, because Pillow
adds up the step in double precision instead of multiplying it, and at ties only the same additions give the
same index.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

# PyTorch's CUDA kernel keeps a block's weights in shared memory and refuses factors that fill it, sooner for
# rows (about 20, estimated) than for columns; beyond this factor each axis is done on its own, as columns.
LARGEST_SHRINK = 16


def short_side_size(height: int, width: int, short_px: int) -> tuple[int, int]:
    """(height, width) once the shorter side is `short_px` pixels; the other rounds half up, at least 1."""
    shorter = min(height, width)
    sides = [max(1, (2 * side * short_px + shorter) // (2 * shorter)) for side in (height, width)]
    return sides[0], sides[1]


def fitted_size(height: int, width: int, crop_px: tuple[int, int], scale: float) -> tuple[int, int]:
    """(height, width) at `scale` times the largest size that fits `crop_px`; rounds down, at least 1."""
    fit = scale * min(crop_px[0] / height, crop_px[1] / width)
    return max(1, int(height * fit)), max(1, int(width * fit))


def nearest_sources(source_px: int, target_px: int) -> NDArray[np.int32]:
    """(target_px,) int32: the source index that Pillow's NEAREST resize shows at each target index."""
    step = source_px / target_px
    steps = np.full(target_px, step)
    steps[0] = step * 0.5
    return np.minimum(np.cumsum(steps).astype(np.int32), source_px - 1)


def resize_image(image: Tensor, out_h: int, out_w: int) -> Tensor:
    """(3, out_h, out_w) float32, whole numbers 0..255: what Pillow's BILINEAR makes of (H, W, 3), +-1.

    `image` is uint8, or floating point of the same values. On the CPU uint8 goes through an integer kernel
    several times quicker than the floating one; CUDA has only the latter. Both round to whole grey levels.
    """
    return resize_planes(image, out_h, out_w).float().round_()


def resize_planes(image: Tensor, out_h: int, out_w: int) -> Tensor:
    """`resize_image` before it casts and rounds: uint8 on the CPU, float32 elsewhere; contiguous planes."""
    planes = image.permute(2, 0, 1)[None]
    if image.device.type == "cpu" and image.dtype == torch.uint8:
        return _interpolate(planes, out_h, out_w)[0].contiguous()
    planes = planes.to(torch.float32, memory_format=torch.contiguous_format)
    height, width = planes.shape[2:]
    if max(height / out_h, width / out_w) <= LARGEST_SHRINK:
        return _interpolate(planes, out_h, out_w)[0]
    across = _interpolate(planes, height, out_w)
    return _interpolate(across.transpose(2, 3).contiguous(), out_w, out_h)[0].transpose(1, 2).contiguous()


def _interpolate(planes: Tensor, out_h: int, out_w: int) -> Tensor:
    return F.interpolate(planes, (out_h, out_w), mode="bilinear", antialias=True)


def normalise(image: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(image - mean) / std by channel for float (..., 3, H, W); `mean` and `std` on the 0..255 scale."""
    return normalise_(image.clone(), mean, std)


def normalise_(image: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """`normalise` in place."""
    shape = (3, 1, 1)
    # Filled scalar by scalar on the device: a tensor made from a list would be copied over and wait for the
    # copy.
    centre, spread = (image.new_empty(shape) for _ in range(2))
    for channel in range(3):
        centre[channel].fill_(mean[channel])
        spread[channel].fill_(std[channel])
    return image.sub_(centre).div_(spread)
