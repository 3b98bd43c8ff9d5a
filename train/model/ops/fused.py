"""Whether the Triton kernels can run here, and the switch of the modules that take them.

Triton itself is imported only when a kernel runs, so that machines without it never miss it.
"""

from __future__ import annotations

import os
from functools import lru_cache
from importlib.util import find_spec

import torch
from torch import Tensor, nn

VALUE_TYPES = (torch.float32, torch.bfloat16, torch.float16)


@torch.compiler.assume_constant_result
def kernels_available() -> bool:
    """Whether Triton can be imported; every CUDA build of torch brings it."""
    return _triton_found()


@lru_cache(maxsize=1)
def _triton_found() -> bool:
    return find_spec("triton") is not None


@torch.compiler.assume_constant_result
def interpreted() -> bool:
    """Whether Triton's CPU interpreter was asked for (TRITON_INTERPRET=1)."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def kernels_fit(value: Tensor) -> bool:
    """Whether the kernels take this tensor: on CUDA or interpreted (TRITON_INTERPRET=1), not float64."""
    place = value.is_cuda or interpreted()
    return place and value.dtype in VALUE_TYPES and kernels_available()


def set_fused(model: nn.Module, on: bool) -> None:
    """Turn the switch `fused` of every module below `model` that has one."""
    set_switch(model, "fused", on)


def set_switch(model: nn.Module, name: str, on: bool) -> None:
    """Turn the switch of this name of every module below `model` that has one."""
    for module in model.modules():
        if hasattr(module, name):
            setattr(module, name, on)
