"""CUDA's rules on a CPU: what becomes float32 there, what does not, and what is copied."""

import torch
import torch.nn.functional as F
from torch import nn

from maskshards.train.bench.cuda_rules import CudaRules

LOW = torch.ones(2, 32, 4, 4, dtype=torch.bfloat16)


def test_functions_of_cudas_list_give_float32_where_autocast_is_on() -> None:
    calls = {
        "layer norm": lambda: nn.LayerNorm(4)(LOW),
        "softmax": lambda: LOW.softmax(-1),
        "sum": lambda: LOW.sum(),
        "pow": lambda: LOW**2,
        "resize": lambda: F.interpolate(LOW, scale_factor=2, mode="bilinear"),
    }
    with torch.autocast("cpu", torch.bfloat16):
        assert {call().dtype for name, call in calls.items() if name != "sum"} == {torch.bfloat16}
        with CudaRules():
            assert {call().dtype for call in calls.values()} == {torch.float32}
    with CudaRules():
        assert LOW.softmax(-1).dtype is torch.bfloat16


def test_products_sums_and_gelu_keep_their_type() -> None:
    with torch.autocast("cpu", torch.bfloat16), CudaRules():
        assert F.linear(LOW, torch.ones(3, 4)).dtype is torch.bfloat16
        assert F.gelu(LOW).dtype is torch.bfloat16
        assert (LOW + LOW).dtype is torch.bfloat16
        assert F.conv2d(LOW.float(), torch.ones(3, 32, 1, 1)).dtype is torch.bfloat16


def test_group_norm_reads_rows() -> None:
    last = LOW.contiguous(memory_format=torch.channels_last)
    assert F.group_norm(last, 4).is_contiguous(memory_format=torch.channels_last)
    with CudaRules():
        assert F.group_norm(last, 4).is_contiguous()
