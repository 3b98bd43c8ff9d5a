"""The stencil over tokens in Triton's CPU interpreter against convolutions level by level in float64, and on
CUDA where there is one.
"""

import pytest
import torch

from tests.train.model.interpreted import cases_of

pytest.importorskip("triton")

CASES = {  # images, channels, levels, type of the tokens
    "three levels": (2, 16, ((6, 5), (3, 2), (1, 1)), "float32"),
    "channels that fill no block": (1, 5, ((4, 7),), "float32"),
    "several blocks of channels": (2, 150, ((3, 3), (2, 1)), "float32"),
    "several blocks of tokens": (3, 128, ((5, 4), (2, 2)), "float32"),
    "lines and columns": (1, 8, ((1, 9), (9, 1)), "float32"),
    "bfloat16": (2, 16, ((4, 4), (2, 2)), "bfloat16"),
    "no image": (0, 8, ((2, 2),), "float32"),
}
PARTS = ("out", "tokens", "weight", "bias")


def errors(name: str, device: str = "cpu") -> dict[str, float]:
    """Largest difference of output and gradients from float64, as a share of the largest entry."""
    from maskshards.train.model.ops.depthwise import depthwise

    images, channels, shapes, dtype = CASES[name]
    draw = torch.Generator().manual_seed(len(name))
    places = sum(height * width for height, width in shapes)
    tokens = torch.randn(images, places, channels, generator=draw).to(getattr(torch, dtype))
    weight = torch.randn(channels, 1, 3, 3, generator=draw)
    bias, grad = torch.randn(channels, generator=draw), torch.randn(tokens.shape, generator=draw)
    leaves = [t.to(device).requires_grad_() for t in (tokens, weight, bias)]
    exact = [t.double().requires_grad_() for t in (tokens, weight, bias)]
    out = depthwise(leaves[0], shapes, leaves[1], leaves[2], stencil=True)
    assert "token_stencil" in type(out.grad_fn).__name__
    found = [out, *torch.autograd.grad(out, leaves, grad.to(out))]
    true = depthwise(exact[0], shapes, exact[1], exact[2])
    expected = [true, *torch.autograd.grad(true, exact, grad.to(tokens).double())]
    assert [t.dtype for t in found] == [tokens.dtype, tokens.dtype, torch.float32, torch.float32]
    pairs = zip(PARTS, (t.detach().cpu().double() for t in found), expected, strict=True)
    return {part: distance(a, b.detach()) for part, a, b in pairs}


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    assert found.shape == expected.shape
    if not found.numel():
        return 0.0
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-9))


def long_chunks() -> dict[str, float]:
    """The same where a program adds up several tiles, the last of them empty."""
    from maskshards.train.model.ops.kernels import depthwise

    depthwise.ENOUGH_PROGRAMS = 3
    return errors("several blocks of tokens")


def checked() -> list[str]:
    """What torch's own checks say of the operator."""
    from maskshards.train.model.ops.deformable_fused import level_table
    from maskshards.train.model.ops.depthwise import token_stencil

    tokens = torch.randn(2, 8, 6, requires_grad=True)
    weight, bias = torch.randn(6, 1, 3, 3, requires_grad=True), torch.randn(6, requires_grad=True)
    table = level_table(((2, 3), (1, 2)), tokens.device)
    return list(torch.library.opcheck(token_stencil, (tokens, table, weight, bias)).values())


def compiled_errors() -> list[float]:
    """The adapter's layer under autocast in a compiled graph without breaks, against itself in eager mode."""
    from maskshards.train.model.heads.adapter import ConvFeedForward

    layer = ConvFeedForward(16, 8)
    layer.dwconv.stencil = True
    tokens = torch.randn(2, 8, 16)

    def call(x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return layer(x * 1, ((2, 3), (1, 2))) * 2

    results = []
    for function in (call, torch.compile(call, backend="aot_eager", fullgraph=True, dynamic=False)):
        leaf = tokens.clone().requires_grad_()
        out = function(leaf)
        wanted = [leaf, layer.dwconv.dwconv.weight, layer.dwconv.dwconv.bias]
        results.append([out.detach(), *torch.autograd.grad(out.float().square().sum(), wanted)])
    return [float((a - b).abs().max()) for a, b in zip(*results, strict=True)]


@pytest.fixture(scope="module")
def interpreted() -> dict[str, dict[str, float]]:
    return cases_of(__file__, checks="checked()", compiled="compiled_errors()", long="long_chunks()")


@pytest.mark.parametrize("name", CASES)
def test_interpreted_kernels_equal_float64(name: str, interpreted: dict[str, dict[str, float]]) -> None:
    rounded = 2**-7 if name == "bfloat16" else 1e-5  # the interpreter rounds by cutting off
    limits = {"out": rounded, "tokens": rounded, "weight": 1e-5, "bias": 1e-5}
    assert set(interpreted[name]) == set(PARTS)
    for part, error in interpreted[name].items():
        assert error < limits[part], part


def test_chunks_of_several_tiles_are_added_up(interpreted: dict[str, dict[str, float]]) -> None:
    assert max(interpreted["long"].values()) < 1e-5


def test_the_operator_passes_torchs_own_checks(interpreted: dict[str, dict[str, float]]) -> None:
    assert set(interpreted["checks"]) == {"SUCCESS"}


def test_the_stencil_stands_in_a_compiled_graph(interpreted: dict[str, list[float]]) -> None:
    assert len(interpreted["compiled"]) == 4
    assert max(interpreted["compiled"]) < 1e-5


@pytest.mark.gpu
@pytest.mark.parametrize("name", CASES)
def test_cuda_kernels_equal_float64(name: str) -> None:
    rounded = 1e-2 if name == "bfloat16" else 1e-5
    for part, error in errors(name, "cuda").items():
        assert error < (rounded if part in ("out", "tokens") else 1e-4), part
