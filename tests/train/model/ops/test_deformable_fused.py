"""The door to the fused kernels: what it refuses and where it applies."""

import pytest
import torch

from maskshards.train.model.ops.deformable_fused import (
    deformable_attention_kernel,
    kernels_available,
    kernels_fit,
)


def test_shapes_that_do_not_add_up_are_refused() -> None:
    value, locations = torch.zeros(1, 7, 2, 4), torch.zeros(1, 3, 2, 2, 1, 2)
    for shapes in (((2, 2), (2, 1)), ((7, 1),)):
        with pytest.raises(ValueError, match="expected 2 levels and 7 places"):
            deformable_attention_kernel(value, shapes, locations, locations[..., 0])


def test_cpu_tensors_take_the_plain_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert not kernels_fit(torch.zeros(1))
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert kernels_fit(torch.zeros(1)) == kernels_available()
    assert not kernels_fit(torch.zeros(1, dtype=torch.float64))


@pytest.mark.gpu
def test_cuda_values_fit() -> None:
    assert kernels_fit(torch.zeros(1, device="cuda", dtype=torch.bfloat16))
