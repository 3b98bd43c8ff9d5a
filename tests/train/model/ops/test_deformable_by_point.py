"""The gradient written by hand equals the numerical one, and the function the one that autograd knows."""

import pytest
import torch
from torch import Tensor

from maskshards.train.model.ops.deformable_attention import DeformableAttention, reference_points
from maskshards.train.model.ops.deformable_by_point import attention_by_point

SHAPES = ((2, 3), (4, 1))


def inputs(batch: int, queries: int, heads: int, width: int, points: int) -> tuple[Tensor, ...]:
    """Float64, with spots between pixels, at borders and far outside."""
    torch.manual_seed(batch + queries)
    numbers = heads * len(SHAPES) * points
    value = torch.randn(batch, 10, heads, width, dtype=torch.float64, requires_grad=True)
    said = 2 * torch.randn(batch, 3 * numbers, queries, dtype=torch.float64)
    return (
        value,
        said.requires_grad_(),
        torch.rand(queries, 2 * numbers).double(),
        torch.rand(2 * numbers).double(),
    )


@pytest.mark.parametrize("keep", [True, False], ids=["kept", "sampled again"])
def test_gradients_equal_the_numerical_ones(keep: bool) -> None:
    value, said, places, steps = inputs(2, 3, 2, 2, 2)
    assert torch.autograd.gradcheck(
        lambda v, s: attention_by_point(v, SHAPES, s, places, steps, 2, keep), (value, said)
    )


@pytest.mark.parametrize("low", [False, True], ids=["float32", "bfloat16"])
def test_the_module_equals_what_autograd_differentiates(low: bool) -> None:
    """As compiled and exported programs do, and the one like the reference."""
    torch.manual_seed(0)
    module = DeformableAttention(32, num_levels=2, num_heads=4)
    torch.nn.init.normal_(module.sampling_offsets.weight)
    torch.nn.init.normal_(module.attention_weights.weight)
    query, position = torch.randn(2, 10, 32, requires_grad=True), torch.randn(10, 32)
    features, references = torch.randn(2, 10, 32, requires_grad=True), reference_points(SHAPES, query.device)
    leaves = (query, features, *module.parameters())

    def run() -> tuple[Tensor, tuple[Tensor, ...]]:
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            out = module(query, references, features, SHAPES, position)
        return out, torch.autograd.grad(out.float().square().sum(), leaves)

    ours, gradients = run()
    module.resample = False
    theirs, wanted = run()
    assert ours.dtype is theirs.dtype
    assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    for mine, other in zip(gradients, wanted, strict=True):
        assert float((mine - other).norm() / other.norm()) < (1e-2 if low else 1e-5)
