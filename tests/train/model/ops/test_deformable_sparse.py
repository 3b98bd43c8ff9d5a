"""The gradient written by hand equals the numerical one, and the function the one that autograd knows."""

import pytest
import torch
from torch import Tensor

from maskshards.train.model.ops import deformable_sparse
from maskshards.train.model.ops.deformable_attention import DeformableAttention, reference_points
from maskshards.train.model.ops.deformable_sparse import sparse_attention

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


@pytest.mark.parametrize("kept", [True, False], ids=["kept", "made again"])
def test_gradients_equal_the_numerical_ones(kept: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not kept:
        monkeypatch.setattr(deformable_sparse, "KEPT_BUDGET", 0)
        monkeypatch.setattr(deformable_sparse, "BUDGET", 1)  # and image by image
    value, said, places, steps = inputs(2, 3, 2, 2, 2)
    assert torch.autograd.gradcheck(lambda v, s: sparse_attention(v, SHAPES, s, places, steps), (value, said))


def test_what_waits_for_the_backward_pass_is_bounded_for_the_whole_layer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not group by group, each of which may be small."""
    value, said, places, steps = inputs(3, 5, 2, 2, 2)
    entries = 5 * len(steps) // 2 * deformable_sparse.CORNERS  # of an image
    monkeypatch.setattr(deformable_sparse, "BUDGET", entries)
    columns: list[Tensor] = []

    def held(tensor: Tensor) -> Tensor:
        columns.extend([tensor] if tensor.dtype is torch.int32 else [])
        return tensor

    for budget, groups in ((3 * entries, 3), (3 * entries - 1, 0)):
        monkeypatch.setattr(deformable_sparse, "KEPT_BUDGET", budget)
        columns.clear()
        with torch.autograd.graph.saved_tensors_hooks(held, lambda tensor: tensor):
            sparse_attention(value, SHAPES, said, places, steps)
        assert [tensor.numel() for tensor in columns] == [entries] * groups


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


def test_what_is_not_finite_is_told_by_what_comes_out_not_by_a_place_outside() -> None:
    """The step's guard names layer and images; an index out of range would end the process."""
    value, said, places, steps = inputs(2, 3, 2, 2, 2)
    with torch.no_grad():
        said[0, 0, 1], said[1, 3, 2] = float("nan"), float("inf")
    out = sparse_attention(value, SHAPES, said, places, steps)
    finite = out.detach().isfinite().view(2, 3, 2, 2).all(-1)
    assert (~finite).nonzero().tolist() == [[0, 1, 0], [1, 2, 0]]
    out.sum().backward()
    assert value.grad is not None
    assert not value.grad.isfinite().all()
