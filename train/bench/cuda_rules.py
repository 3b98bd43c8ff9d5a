"""CUDA's rules of autocast and layout, for a step that runs on a CPU.

CUDA's autocast computes more in float32 than the CPU's does: norms, softmax, sums, exponentials and every
resize give float32 whatever they were given, and each reader behind them makes a copy of its own. What is
counted or watched on a CPU under `CudaRules` has the types that it would have there. (The lists are those of
aten/src/ATen/autocast_mode.h in torch 2.11 to 2.13.)
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from maskshards.train.model.heads import query_decoder

FLOAT32_NAMES = (
    "acos asin cosh erfinv exp expm1 log log10 log2 log1p reciprocal rsqrt sinh tan pow __pow__ __rpow__ "
    "softplus layer_norm group_norm cosine_similarity nll_loss kl_div l1_loss smooth_l1_loss huber_loss "
    "mse_loss binary_cross_entropy_with_logits cross_entropy dist cdist logsumexp interpolate "
    "prod softmax log_softmax cumprod cumsum sum"
).split()
OWNERS = (torch, Tensor, F)
FLOAT32 = frozenset(
    getattr(owner, name) for owner in OWNERS for name in FLOAT32_NAMES if hasattr(owner, name)
)
LOW = (torch.bfloat16, torch.float16)


class CudaRules(TorchFunctionMode):
    """Within it autocast widens what CUDA's does, and group norm reads rows.

    Functions of CUDA's float32 list give float32 where autocast is on. torch has no other kernel for group
    norm there, and copies what is laid out otherwise. Attention is not widened, as it is on a CPU.
    """

    def __enter__(self) -> CudaRules:
        self._widened = set(query_decoder.WIDENED)
        query_decoder.WIDENED.clear()
        super().__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        query_decoder.WIDENED.update(self._widened)
        super().__exit__(*exception)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.group_norm and isinstance(args[0], Tensor):
            args = (args[0].contiguous(), *args[1:])
        if func not in FLOAT32 or not torch.is_autocast_enabled("cpu"):
            return func(*args, **kwargs)
        with torch.autocast("cpu", enabled=False):
            args, kwargs = tree_map(raised, (args, kwargs))
            return func(*args, **kwargs)


def raised(leaf: Any) -> Any:
    """A tensor of 16-bit floats as float32, anything else as it is."""
    return leaf.float() if isinstance(leaf, Tensor) and leaf.dtype in LOW else leaf
