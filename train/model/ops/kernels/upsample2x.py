"""The gradient of a doubled map as a Triton kernel: every entry gathers what went out from it.

Along one side output 2 i - 1 has a quarter of entry i, outputs 2 i and 2 i + 1 three quarters, output 2 i + 2
a quarter. At the ends torch reads the outermost entry in place of the one that is missing, so there the first
and the last output count once more: the same four places, moved inside.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024  # entries of one program
OPTIONS = {"num_warps": 4, "enable_fp_fusion": True}


def gathered(grad: Tensor, out: Tensor) -> Tensor:
    """`out` (B, C, h, w), filled from grad (B, C, 2 h, 2 w), both in rows or both channels-last.

    float32, bfloat16 or float16.
    """
    layout = torch.contiguous_format if out.is_contiguous() else torch.channels_last
    grad = grad.contiguous(memory_format=layout)
    batch, channels, height, width = out.shape
    together = 1 if layout is torch.contiguous_format else channels  # numbers that stand at one place
    entries = height * width * together
    programs = batch * channels // together * triton.cdiv(entries, BLOCK)
    if programs:
        _gather[(programs,)](grad, out, entries, height, width, together, BLOCK=BLOCK, **OPTIONS)
    return out


@triton.jit
def _gather(grad, out, entries, height, width, together, BLOCK: tl.constexpr):
    """One block of the `entries` of one plane (rows) or image (channels-last)."""
    blocks = tl.cdiv(entries, BLOCK)
    number = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    plane = (tl.program_id(0) // blocks).to(tl.int64)
    inside = number < entries
    place, channel = number // together, number % together
    x, y = place % width, place // width
    grads = grad + plane * 4 * entries + channel
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for down in tl.static_range(4):
        row = tl.minimum(tl.maximum(2 * y + (down - 1), 0), 2 * height - 1)
        for right in tl.static_range(4):
            column = tl.minimum(tl.maximum(2 * x + (right - 1), 0), 2 * width - 1)
            share = (0.75 if down == 1 or down == 2 else 0.25) * (0.75 if right == 1 or right == 2 else 0.25)
            offset = (row.to(tl.int64) * 2 * width + column) * together
            total += share * tl.load(grads + offset, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + plane * entries + number, total.to(out.dtype.element_ty), mask=inside)
