"""Products of frozen blocks in 8 bits: `model.backbone_precision=fp8`.

Every linear layer of the blocks takes float8 (e4m3) inputs and weights, each row scaled to its own largest
entry, and adds up in float32: twice the rate of bfloat16 on GPUs that have the units, for features that
differ by some per cent. Norms, attention, residuals and the patch embedding stay as they are. Elsewhere the
same rounding is computed in float32, slower than without: for comparing, and for tests.
"""

from __future__ import annotations

import logging

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskshards.train.model.backbone.architectures import ModelError

logger = logging.getLogger(__name__)

TYPE = torch.float8_e4m3fn
LARGEST = 448.0  # number of that type
SMALLEST_SCALE = 1e-12  # a row of zeros has no largest entry
CAPABILITY = (8, 9)  # of NVIDIA's first chips with the units
MULTIPLE = 16  # that both sides of a matrix divide by, as the kernels ask for


def quantised(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (R, C) of any float type as float8, and the factor (R, 1) float32 that each stands for."""
    wide = rows.float()
    scale = (wide.abs().amax(-1, keepdim=True) / LARGEST).clamp(min=SMALLEST_SCALE)
    return (wide / scale).to(TYPE), scale


class Fp8Linear(nn.Module):
    """A frozen nn.Linear whose product is taken in float8; the result has autocast's type, or the input's."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight, scale = quantised(linear.weight.detach())
        self.weight = nn.Parameter(weight, requires_grad=False)  # (out, in)
        self.scale = nn.Parameter(scale, requires_grad=False)  # (out, 1)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        device = x.device.type
        low = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        with torch.autocast(device, enabled=False):
            values, scale = quantised(x.flatten(0, -2))
            out = self._product(values, scale)
            if self.bias is not None:
                out = out + self.bias.to(out.dtype)
        return out.to(low).unflatten(0, x.shape[:-1])

    def _product(self, values: Tensor, scale: Tensor) -> Tensor:
        if values.is_cuda:
            return torch._scaled_mm(
                values, self.weight.t(), scale_a=scale, scale_b=self.scale.t(), out_dtype=torch.bfloat16
            )
        return F.linear(values.float(), self.weight.float()) * scale * self.scale.t()


def in_fp8(blocks: nn.Module) -> None:
    """Have every linear layer below `blocks` take its product in float8, in place.

    ModelError where it cannot be: a GPU without the units, or matrices of odd sizes.
    """
    linear = [(name, module) for name, module in blocks.named_modules() if isinstance(module, nn.Linear)]
    for name, module in linear:
        if module.in_features % MULTIPLE or module.out_features % MULTIPLE:
            raise ModelError(
                f"model.backbone_precision=fp8: {name} is {module.out_features}x{module.in_features}, and "
                f"both must divide by {MULTIPLE}; leave the key out"
            )
    _check_device(linear[0][1].weight.device)
    for name, module in linear:
        path, _, own = name.rpartition(".")
        setattr(blocks.get_submodule(path), own, Fp8Linear(module))


def _check_device(device: torch.device) -> None:
    if device.type != "cuda":
        logger.warning("fp8 products of the backbone are emulated on %s: slower, the same rounding", device)
        return
    found = torch.cuda.get_device_capability(device)
    if found < CAPABILITY:
        raise ModelError(
            f"model.backbone_precision=fp8 needs a GPU of compute capability {CAPABILITY[0]}.{CAPABILITY[1]} "
            f"or later (Ada, Hopper, Blackwell), and {torch.cuda.get_device_name(device)} has "
            f"{found[0]}.{found[1]}; leave the key out"
        )
