"""The door to the fused deformable attention: whether this machine can run it, and the call.

Triton is imported only here and only when asked for, so that machines without it never miss it.
"""

from __future__ import annotations

import os
from functools import lru_cache
from importlib.util import find_spec

import torch
from torch import Tensor

Shapes = tuple[tuple[int, int], ...]  # (height, width) of each level

VALUE_TYPES = (torch.float32, torch.bfloat16, torch.float16)


@lru_cache(maxsize=1)
def kernels_available() -> bool:
    """Whether Triton can be imported; every CUDA build of torch brings it."""
    return find_spec("triton") is not None


def kernels_fit(value: Tensor) -> bool:
    """Whether the kernels take this tensor: on CUDA (or interpreted, with TRITON_INTERPRET=1), not
    float64.
    """
    place = value.is_cuda or os.environ.get("TRITON_INTERPRET") == "1"
    return place and value.dtype in VALUE_TYPES and kernels_available()


def deformable_attention_kernel(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """The same function as `deformable_attention`, values and three gradients, in two fused kernels.

    value (B, S, M, D) float32, bfloat16 or float16, any D; locations (B, Q, M, L, P, 2) and weights (B,
    Q, M, L, P) float32, any L and P. Returns (B, Q, M * D) of value's dtype. Waits for nothing on the
    device. Raises ValueError where `shapes` do not add up to S or are not L in number.
    """
    places = sum(height * width for height, width in shapes)
    if places != value.shape[1] or len(shapes) != locations.shape[3]:
        raise ValueError(
            f"deformable attention: {len(shapes)} levels of {places} places in all, expected "
            f"{locations.shape[3]} levels and {value.shape[1]} places"
        )
    from train.model.deformable_triton import FusedDeformableAttention

    return FusedDeformableAttention.apply(value, tuple(shapes), locations, weights)
