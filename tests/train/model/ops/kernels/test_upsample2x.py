"""The gathered gradient of a doubled map in Triton's CPU interpreter against torch's in float64, and on CUDA
where there is one.

The interpreter must be chosen before Triton is imported, so the cases run in one process of their own.
"""

import pytest
import torch
import torch.nn.functional as F

from tests.train.model.interpreted import cases_of

pytest.importorskip("triton")

CASES = {  # shape of the maps, dtype, channels-last
    "rows": ((2, 3, 5, 4), "float32", False),
    "channels last": ((2, 5, 4, 6), "float32", True),
    "one pixel": ((1, 2, 1, 1), "float32", False),
    "one row": ((1, 3, 1, 7), "float32", True),
    "several blocks": ((1, 2, 40, 33), "float32", False),
    "several blocks, channels last": ((2, 7, 20, 13), "float32", True),
    "bfloat16": ((2, 3, 9, 8), "bfloat16", False),
    "bfloat16, channels last": ((1, 4, 9, 8), "bfloat16", True),
    "nothing": ((0, 3, 2, 2), "float32", False),
}


def errors(name: str, device: str = "cpu") -> dict[str, float]:
    """Largest difference of values and gradient from float64, as a share of the entry, or of 1 below it."""
    from maskshards.train.model.ops.upsample2x import doubled

    shape, dtype, last = CASES[name]
    draw = torch.Generator().manual_seed(len(name))
    layout = torch.channels_last if last else torch.contiguous_format
    maps = torch.randn(shape, generator=draw).to(getattr(torch, dtype)).to(memory_format=layout)
    grad = torch.randn(*shape[:2], 2 * shape[2], 2 * shape[3], generator=draw).to(maps)
    ours, exact = maps.to(device).requires_grad_(), maps.double().requires_grad_()
    out = doubled(ours)
    (found,) = torch.autograd.grad(out, ours, grad.to(device, memory_format=layout))
    twice = F.interpolate(exact, scale_factor=2, mode="bilinear", align_corners=False)
    (expected,) = torch.autograd.grad(twice, exact, grad.double())
    assert found.dtype == maps.dtype
    pairs = {"values": (out, twice), "gradient": (found, expected)}
    return {key: distance(a.detach().cpu().double(), b.detach()) for key, (a, b) in pairs.items()}


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    assert found.shape == expected.shape
    shares = (found - expected).abs() / expected.abs().clamp(min=1)
    return float(shares.max()) if shares.numel() else 0.0


def checked() -> list[str]:
    """What torch's own checks say of the operator."""
    from maskshards.train.model.ops.upsample2x import doubled_by_kernel

    maps = torch.randn(2, 3, 4, 5, requires_grad=True)
    return list(torch.library.opcheck(doubled_by_kernel, (maps,)).values())


@pytest.fixture(scope="module")
def interpreted() -> dict[str, dict[str, float]]:
    return cases_of(__file__, checks="checked()")


@pytest.mark.parametrize("name", CASES)
def test_interpreted_gradient_equals_float64(name: str, interpreted: dict[str, dict[str, float]]) -> None:
    limit = 2**-7 if "bfloat16" in name else 1e-6  # one rounding, which the interpreter does by cutting off
    assert set(interpreted[name]) == {"values", "gradient"}
    assert max(interpreted[name].values()) <= limit


def test_the_operator_passes_torchs_own_checks(interpreted: dict[str, dict[str, float]]) -> None:
    assert set(interpreted["checks"]) == {"SUCCESS"}


@pytest.mark.gpu
@pytest.mark.parametrize("name", CASES)
def test_cuda_gradient_equals_float64(name: str) -> None:
    limit = 1.01 * 2**-8 if "bfloat16" in name else 1e-5  # one rounding to the nearest
    assert max(errors(name, "cuda").values()) <= limit
