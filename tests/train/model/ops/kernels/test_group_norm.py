"""Group norm over channels-last maps in Triton's CPU interpreter against torch's in float64, and on CUDA
where there is one.
"""

import pytest
import torch
import torch.nn.functional as F

from tests.train.model.interpreted import cases_of

pytest.importorskip("triton")

CASES = {  # shape of the maps, groups, type of the maps, type of the weights, mean of the maps
    "groups of eight": ((1, 64, 5, 7), 8, "float32", "float32", 0.0),
    "several tiles": ((1, 8, 29, 37), 4, "float32", "float32", 0.0),
    "three channels a group": ((2, 12, 4, 3), 4, "float32", "float32", 0.0),
    "more groups than a block": ((1, 384, 3, 2), 3, "float32", "float32", 0.0),
    "one group": ((3, 6, 2, 5), 1, "float32", "float32", 0.0),
    "a channel a group": ((1, 5, 3, 4), 5, "float32", "float32", 0.0),
    "one row": ((2, 8, 1, 9), 2, "float32", "float32", 0.0),
    "far from zero": ((1, 8, 12, 12), 2, "float32", "float32", 1000.0),
    "bfloat16": ((2, 32, 6, 5), 4, "bfloat16", "float32", 3.0),
    "bfloat16 weights": ((1, 16, 6, 5), 4, "bfloat16", "bfloat16", 0.0),
}
PARTS = ("out", "maps", "weight", "bias")


def errors(name: str, device: str = "cpu", tiles: int | None = None) -> dict[str, float]:
    """Largest difference of output and gradients from float64, as a share of the largest entry."""
    from maskshards.train.model.ops.group_norm import group_normed

    shape, groups, dtype, of_weights, centre = CASES[name]
    draw = torch.Generator().manual_seed(len(name))
    maps = (torch.randn(shape, generator=draw) + centre).to(getattr(torch, dtype))
    weight, bias = (torch.randn(shape[1], generator=draw).to(getattr(torch, of_weights)) for _ in range(2))
    grad = torch.randn(shape, generator=draw).to(maps.dtype)
    last = torch.channels_last
    leaves = [maps.to(device, memory_format=last), weight.to(device), bias.to(device)]
    leaves = [leaf.requires_grad_() for leaf in leaves]
    exact = [leaf.detach().cpu().double().requires_grad_() for leaf in leaves]
    out = group_normed(leaves[0], groups, leaves[1], leaves[2], 1e-5)
    assert type(out.grad_fn).__name__.startswith("GeneratedBackwardFor_maskshards_group_norm_last")
    assert out.stride() == leaves[0].stride()
    found = [out, *torch.autograd.grad(out, leaves, grad.to(device))]  # in rows: turned over first
    assert [t.dtype for t in found] == [maps.dtype, maps.dtype, weight.dtype, bias.dtype]
    assert found[1].is_contiguous(memory_format=last)
    true = F.group_norm(exact[0], groups, exact[1], exact[2], 1e-5)
    expected = [true, *torch.autograd.grad(true, exact, grad.double())]
    pairs = zip(PARTS, (t.detach().cpu().double() for t in found), expected, strict=True)
    return {part: float((a - b.detach()).abs().max() / b.detach().abs().max()) for part, a, b in pairs}


def long_chunks() -> dict[str, float]:
    """The same where a program adds up several tiles, the last of them empty or cut off."""
    from maskshards.train.model.ops.kernels import group_norm

    group_norm.ENOUGH_PROGRAMS, group_norm.NUMBERS_PER_TILE, group_norm.CHUNKS_AT_ONCE = 1, 256, 2
    sizes = group_norm.block_sizes(2, 4)
    assert group_norm.cut(1, 29 * 37, 4, sizes) == (8, 5, 1)  # 40 tiles for 1,073 places, 32 in each
    return errors("several tiles")


def checked() -> list[str]:
    """What torch's own checks say of the operator."""
    from maskshards.train.model.ops.group_norm import group_norm_last

    maps = torch.randn(2, 6, 3, 4).to(memory_format=torch.channels_last).requires_grad_()
    weight, bias = (torch.randn(6, requires_grad=True) for _ in range(2))
    return list(torch.library.opcheck(group_norm_last, (maps, weight, bias, 3, 1e-5)).values())


def compiled_errors() -> list[float]:
    """The module under autocast in a compiled graph without breaks, against itself called eagerly."""
    from maskshards.train.model.ops.autocast_norms import GroupNorm

    norm = GroupNorm(4, 16)
    maps = torch.randn(2, 16, 5, 3).to(memory_format=torch.channels_last)

    def call(x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return norm(x * 1) * 2

    results = []
    for function in (call, torch.compile(call, backend="aot_eager", fullgraph=True, dynamic=False)):
        leaf = maps.clone().requires_grad_()
        out = function(leaf)
        assert out.dtype is torch.bfloat16
        results.append([out.detach(), *torch.autograd.grad(out.float().square().sum(), [leaf, norm.weight])])
    return [float((a - b).abs().max()) for a, b in zip(*results, strict=True)]


@pytest.fixture(scope="module")
def interpreted() -> dict[str, dict[str, float]]:
    return cases_of(__file__, checks="checked()", compiled="compiled_errors()", long="long_chunks()")


@pytest.mark.parametrize("name", CASES)
def test_interpreted_kernels_equal_float64(name: str, interpreted: dict[str, dict[str, float]]) -> None:
    limits = dict.fromkeys(PARTS, 1e-5)
    if "far" in name:
        limits = dict.fromkeys(PARTS, 1e-4)  # what float32 holds of numbers around 1000
    if "bfloat16" in name:
        limits |= {"out": 2**-7, "maps": 2**-7}  # one rounding, which the interpreter does by cutting off
    if name == "bfloat16 weights":
        limits = dict.fromkeys(PARTS, 2**-7)
    assert set(interpreted[name]) == set(PARTS)
    for part, error in interpreted[name].items():
        assert error < limits[part], part


def test_chunks_of_several_tiles_are_combined(interpreted: dict[str, dict[str, float]]) -> None:
    assert max(interpreted["long"].values()) < 1e-5


def test_the_operator_passes_torchs_own_checks(interpreted: dict[str, dict[str, float]]) -> None:
    assert set(interpreted["checks"]) == {"SUCCESS"}


def test_the_norm_stands_in_a_compiled_graph(interpreted: dict[str, list[float]]) -> None:
    assert len(interpreted["compiled"]) == 3
    assert max(interpreted["compiled"]) < 1e-5


def test_tiles_are_cut_so_that_programs_are_many() -> None:
    from maskshards.train.model.ops.kernels.group_norm import block_sizes, cut

    assert block_sizes(8, 32) == {"BLOCK_P": 16, "BLOCK_G": 32, "BLOCK_D": 8}
    assert block_sizes(64, 32) == {"BLOCK_P": 16, "BLOCK_G": 4, "BLOCK_D": 64}
    assert cut(16, 128 * 128, 32, block_sizes(8, 32)) == (8, 128, 1)
    assert cut(16, 16 * 16, 32, block_sizes(8, 32)) == (1, 16, 1)
    assert cut(16, 128 * 128, 32, block_sizes(64, 32)) == (8, 128, 8)


@pytest.mark.gpu
@pytest.mark.parametrize("name", CASES)
def test_cuda_kernels_equal_float64(name: str) -> None:
    limits = dict.fromkeys(PARTS, 1e-4) | (
        {"out": 1e-2, "maps": 1e-2, "weight": 1e-2, "bias": 1e-2} if "bfloat16" in name else {}
    )
    for part, error in errors(name, "cuda").items():
        assert error < limits[part], part
