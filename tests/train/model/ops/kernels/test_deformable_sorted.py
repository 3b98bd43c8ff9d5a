"""The value gradient by sorting against float64: in Triton's interpreter, on CUDA where there is one."""

import pytest
import torch

from tests.train.model.interpreted import cases_of
from tests.train.model.ops.kernels.test_deformable import CASES as ATTENTIONS
from tests.train.model.ops.kernels.test_deformable import errors as attention_errors

pytest.importorskip("triton")

CASES = ATTENTIONS  # what `cases_of` runs


def errors(name: str, device: str = "cpu", points_first: bool = False) -> dict[str, float]:
    """Those of the whole attention with its value gradient sorted for every width."""
    from maskshards.train.model.ops.kernels import deformable

    deformable.SORTED_FROM_WIDTH = 1
    try:
        return attention_errors(name, device, points_first)
    finally:
        deformable.SORTED_FROM_WIDTH = None


def crowded() -> float:
    """Largest error where all points of all queries read one place, more shares than a block holds."""
    from maskshards.train.model.ops.kernels.deformable_sorted import value_gradient

    generator = torch.Generator().manual_seed(0)
    value, grad = torch.zeros(1, 4, 1, 5), torch.randn(1, 70, 5, generator=generator)
    weights = torch.rand(1, 70, 1, 1, 2, generator=generator)
    locations = torch.full((1, 70, 1, 1, 2, 2), 0.25)  # the centre of the first of 2 x 2 places
    table = torch.tensor([[2, 2, 0]], dtype=torch.int32)
    found = value_gradient(grad, value, table, locations, weights)[0, :, 0]
    expected = torch.zeros(4, 5, dtype=torch.float64)
    expected[0] = (weights[0, :, 0, 0].double().sum(-1)[:, None] * grad[0].double()).sum(0)
    return float((found.double() - expected).abs().max())


@pytest.fixture(scope="module")
def interpreted() -> dict[str, dict[str, float]]:
    by_point = "errors('three levels', points_first=True)"
    return cases_of(__file__, crowded="crowded()", **{"by point": by_point})


@pytest.mark.parametrize("name", [*CASES, "by point"])
def test_interpreted_kernels_equal_float64(name: str, interpreted: dict[str, dict[str, float]]) -> None:
    limit = 1e-2 if "bfloat16" in name else 1e-5
    for part, error in interpreted[name].items():
        assert error < (limit if part in ("out", "value") else 1e-5), part


def test_a_place_that_everyone_reads_gets_all_shares(interpreted: dict[str, float]) -> None:
    assert interpreted["crowded"] < 1e-5


def test_shares_beyond_32_bits_are_left_to_atomics() -> None:
    from maskshards.train.model.ops.kernels.deformable_sorted import fits

    shape = (16, 5376, 16, 3, 4, 2)
    assert fits(torch.empty(shape, device="meta"))
    assert not fits(torch.empty((600, *shape[1:]), device="meta"))


@pytest.mark.gpu
@pytest.mark.parametrize("name", CASES)
def test_cuda_kernels_equal_float64(name: str) -> None:
    limit = 1e-2 if "bfloat16" in name else 1e-5
    for part, error in errors(name, "cuda").items():
        assert error < (limit if part in ("out", "value") else 1e-5), part
