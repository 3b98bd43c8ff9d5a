"""FLOPs by hand, and measures that exist only where a device does."""

import pytest
import torch
from torch import nn

from maskshards.train.bench.hardware import count_flops, count_syncs, matmul_tflops, peak_gib, reset_peak

CPU = torch.device("cpu")


def test_flops_of_a_linear_layer_forward_and_backward() -> None:
    layer, x = nn.Linear(5, 7), torch.ones(3, 5, requires_grad=True)
    product = 2 * 3 * 5 * 7
    assert count_flops(lambda: layer(x)) == product
    assert count_flops(lambda: layer(x).sum().backward()) == 3 * product


def test_flops_of_a_compiled_layer_are_counted_without_compiling_it() -> None:
    def unseen(graph: object, inputs: object) -> object:
        raise AssertionError("a compiled program would do its products unseen")

    layer, x = nn.Linear(5, 7), torch.ones(3, 5)
    layer.compile(backend=unseen)
    assert count_flops(lambda: layer(x)) == 2 * 3 * 5 * 7


def test_a_machine_multiplies_at_some_rate() -> None:
    assert 0 < matmul_tflops(CPU, torch.float32, 64, repeats=2) < 1000


def test_what_is_multiplied_is_no_constant_and_the_same_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Tensor] = []
    monkeypatch.setattr(torch.Tensor, "mm", lambda a, b: seen.extend((a, b)))
    for _ in range(2):
        matmul_tflops(CPU, torch.bfloat16, 64, repeats=1)
    assert seen[0].dtype is torch.bfloat16
    assert seen[0].float().std() > 0.9
    assert all(torch.equal(seen[0], other) for other in seen)


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
