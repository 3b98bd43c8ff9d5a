"""The fused kernels in Triton's CPU interpreter against a plain float64 version, and on CUDA where
there is one.

The interpreter must be chosen before Triton is imported, so the cases run in one process of their own.
"""

import pytest
import torch
import torch.nn.functional as F

from tests.train.model.interpreted import cases_of

pytest.importorskip("triton")

CASES = {  # head width, heads, levels, points, queries, dtype of the values
    "three levels": (16, 2, ((4, 5), (3, 2), (1, 1)), 4, 19, "float32"),
    "width 24": (24, 1, ((5, 3),), 2, 7, "float32"),
    "width 48": (48, 2, ((3, 4), (2, 2)), 1, 5, "float32"),
    "many levels": (8, 1, ((2, 3), (3, 2), (1, 4), (2, 2), (1, 1)), 3, 6, "float32"),
    "bfloat16 values": (16, 2, ((4, 4), (2, 2)), 4, 9, "bfloat16"),
    "one query": (3, 1, ((2, 2),), 1, 1, "float32"),
}

BY_POINT = ("width 24", "bfloat16 values")
CPU = torch.device("cpu")

Inputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def make_inputs(name: str) -> Inputs:
    """Values, locations from far outside to far outside with exact borders among them, weights, output
    gradient.
    """
    width, heads, shapes, points, queries, dtype = CASES[name]
    generator = torch.Generator().manual_seed(len(name))
    places = sum(h * w for h, w in shapes)
    value = torch.randn(2, places, heads, width, generator=generator).to(getattr(torch, dtype))
    locations = 2 * torch.rand(2, queries, heads, len(shapes), points, 2, generator=generator) - 0.5
    edges = torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.0, 0.4], [-30.0, 0.5], [0.3, 1e9]])
    flat = locations.view(-1, 2)
    flat[: min(5, len(flat) // 2)] = edges[: min(5, len(flat) // 2)]
    weights = torch.randn(2, queries, heads, len(shapes), points, generator=generator)
    grad = torch.randn(2, queries, heads * width, generator=generator).to(value.dtype)
    return value, locations, weights, grad


def plain(
    value: torch.Tensor, shapes: tuple[tuple[int, int], ...], locations: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """One grid_sample for each image, head and level, in float64."""
    images = []
    for b in range(value.shape[0]):
        heads = []
        for m in range(value.shape[2]):
            total, start = torch.zeros(locations.shape[1], value.shape[3], dtype=torch.float64), 0
            for level, (h, w) in enumerate(shapes):
                maps = value[b, start : start + h * w, m].T.reshape(1, -1, h, w)
                grid = 2 * locations[b, :, m, level][None] - 1
                sampled = F.grid_sample(maps, grid, align_corners=False)[0]  # (D, Q, P)
                total = total + (sampled * weights[b, :, m, level]).sum(-1).T
                start += h * w
            heads.append(total)
        images.append(torch.cat(heads, -1))
    return torch.stack(images)


def with_gradients(
    function, inputs: Inputs, dtype: torch.dtype | None, device: str = "cpu"
) -> list[torch.Tensor]:  # type: ignore[no-untyped-def]
    leaves = [t.to(device, dtype or t.dtype).requires_grad_() for t in inputs[:3]]
    out = function(*leaves)
    return [out.detach().cpu(), *(g.cpu() for g in torch.autograd.grad(out, leaves, inputs[3].to(out)))]


def errors(name: str, device: str = "cpu", points_first: bool = False) -> dict[str, float]:
    """Largest difference of the output and the gradients, as a share of the largest entry."""
    from maskshards.train.model.ops.deformable_fused import deformable_attention_kernel

    shapes, inputs = CASES[name][2], make_inputs(name)

    def kernel(value: torch.Tensor, locations: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        if points_first:
            locations, weights = locations.permute(0, 2, 3, 4, 5, 1), weights.permute(0, 2, 3, 4, 1)
        return deformable_attention_kernel(value, shapes, locations, weights, points_first=points_first)

    fused = with_gradients(kernel, inputs, None, device)
    exact = with_gradients(lambda v, x, a: plain(v, shapes, x, a), inputs, torch.float64)
    names = ("out", "value", "locations", "weights")
    return {
        name: float((ours.double() - theirs).abs().max() / theirs.abs().max().clamp(min=1e-9))
        for name, ours, theirs in zip(names, fused, exact, strict=True)
    }


def by_point() -> dict[str, dict[str, float]]:
    """The same of a few cases where a point's queries stand side by side."""
    return {name: errors(name, points_first=True) for name in BY_POINT}


def module_errors() -> list[float]:
    """The module with its kernels' coordinates by point against by query: output, and gradients of all."""
    from maskshards.train.model.ops.deformable_attention import DeformableAttention, reference_points

    shapes = ((2, 3), (1, 2))
    module, points = DeformableAttention(32, num_levels=2, num_heads=2), reference_points(shapes, CPU)
    torch.nn.init.normal_(module.sampling_offsets.weight, std=0.1)
    torch.nn.init.normal_(module.attention_weights.weight)
    query, position = torch.randn(2, 8, 32, requires_grad=True), torch.randn(8, 32)
    results = []
    for by_points in (False, True):
        module.points_first = by_points
        out = module(query, points, query, shapes, position)
        grads = torch.autograd.grad(out.square().sum(), [query, *module.parameters()])
        results.append([out.detach(), *grads])
    return [float((a - b).abs().max() / b.abs().max()) for a, b in zip(*results, strict=True)]


def compiled_errors(name: str) -> dict[str, float]:
    """The same for the operator in a compiled graph without breaks, against the operator called eagerly, with
    torch's own checks of the registration before.
    """
    from maskshards.train.model.ops.deformable_fused import (
        deformable_attention_kernel,
        fused_attention,
        level_table,
    )

    shapes, inputs = CASES[name][2], make_inputs(name)
    table = level_table(shapes, inputs[0].device)
    leaves = [t.clone().requires_grad_() for t in inputs[:3]]
    torch.library.opcheck(fused_attention, (leaves[0], table, *leaves[1:], False))

    def call(value: torch.Tensor, locations: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return deformable_attention_kernel(value * 1, shapes, locations, weights) * 1

    whole = torch.compile(call, backend="aot_eager", fullgraph=True, dynamic=False)
    ours, theirs = (with_gradients(function, inputs, None) for function in (whole, call))
    return {str(i): float((a - b).abs().max()) for i, (a, b) in enumerate(zip(ours, theirs, strict=True))}


@pytest.fixture(scope="module")
def interpreted() -> dict[str, dict[str, float]]:
    more = {"by point": "by_point()", "module": "module_errors()"}
    return cases_of(__file__, compiled="compiled_errors('width 24')", **more)


@pytest.mark.parametrize("name", CASES)
def test_interpreted_kernels_equal_float64(name: str, interpreted: dict[str, dict[str, float]]) -> None:
    limit = 1e-2 if "bfloat16" in name else 1e-5
    for part, error in interpreted[name].items():
        assert error < (limit if part in ("out", "value") else 1e-5), part


@pytest.mark.parametrize("name", BY_POINT)
def test_coordinates_by_point_give_the_same(
    name: str, interpreted: dict[str, dict[str, dict[str, float]]]
) -> None:
    limit = 1e-2 if "bfloat16" in name else 1e-5
    for part, error in interpreted["by point"][name].items():
        assert error < (limit if part in ("out", "value") else 1e-5), part


def test_the_module_gives_the_same_either_way(interpreted: dict[str, list[float]]) -> None:
    assert len(interpreted["module"]) == 10
    assert max(interpreted["module"]) < 1e-5


def test_the_operator_stands_in_a_compiled_graph(interpreted: dict[str, dict[str, float]]) -> None:
    assert len(interpreted["compiled"]) == 4
    assert max(interpreted["compiled"].values()) < 1e-5


@pytest.mark.parametrize(("images", "queries"), [(2, 19), (10_000, 5376), (0, 5), (3, 0)])
def test_the_grid_has_one_axis_and_covers_all_queries(images: int, queries: int) -> None:
    from maskshards.train.model.ops.kernels.deformable import _launch, block_sizes

    grids: list[tuple[int, ...]] = []

    class Kernel:
        def __getitem__(self, grid: tuple[int, ...]):  # type: ignore[no-untyped-def]
            grids.append(grid)
            return lambda *args, **options: None

    value = torch.empty(images, 4, 16, 128, device="meta")
    weights = torch.empty(images, queries, 16, 1, 4, device="meta")
    locations = weights[..., None].expand(-1, -1, -1, -1, -1, 2)
    _launch(Kernel(), value, value, locations, weights, POINTS_FIRST=False)
    expected = images * 16 * -(-queries // block_sizes(128)[0])
    assert grids == ([(expected,)] if expected else [])
    assert expected < 2**31


@pytest.mark.gpu
@pytest.mark.parametrize("points_first", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_cuda_kernels_equal_float64(name: str, points_first: bool) -> None:
    limit = 1e-2 if "bfloat16" in name else 1e-5
    for part, error in errors(name, "cuda", points_first).items():
        assert error < (limit if part in ("out", "value") else 1e-4), part
