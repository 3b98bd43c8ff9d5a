"""FLOPs by hand, and measures that exist only where a device does."""

import pytest
import torch
from torch import nn

from train.yardsticks import count_flops, count_syncs, matmul_tflops, peak_gib, reset_peak

CPU = torch.device("cpu")


def test_flops_of_a_linear_layer_forward_and_backward() -> None:
    layer, x = nn.Linear(5, 7), torch.ones(3, 5, requires_grad=True)
    product = 2 * 3 * 5 * 7
    assert count_flops(lambda: layer(x)) == product
    assert count_flops(lambda: layer(x).sum().backward()) == 3 * product


def test_a_machine_multiplies_at_some_rate() -> None:
    assert 0 < matmul_tflops(CPU, torch.float32, 64, repeats=2) < 1000


def test_off_cuda_there_are_no_syncs_and_no_peak() -> None:
    called = []
    assert count_syncs(lambda: called.append(1), CPU) is None
    reset_peak(CPU)
    assert peak_gib(CPU) is None


@pytest.mark.gpu
def test_a_sync_is_counted() -> None:
    a = torch.ones(8, device="cuda")
    assert count_syncs(lambda: float(a.sum()), torch.device("cuda")) == 1
    assert count_syncs(lambda: a.sum(), torch.device("cuda")) == 0
