"""Deformable attention against a loop over every query, head, level, point and corner, in float64."""

import math

import pytest
import torch
from torch import Tensor
from transformers.models.mask2former.modeling_mask2former import (
    Mask2FormerPixelDecoderEncoderMultiscaleDeformableAttention as TheirAttention,
)

from maskshards.train.model.ops import deformable_attention as module
from maskshards.train.model.ops.deformable_attention import (
    DeformableAttention,
    Shapes,
    deformable_attention,
    reference_points,
)

SHAPES: Shapes = ((2, 3), (4, 5), (1, 1))


def by_loop(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    batch, _, heads, width = value.shape
    queries, points = locations.shape[1], locations.shape[4]
    out = value.new_zeros(batch, queries, heads, width)
    for b in range(batch):
        for q in range(queries):
            for m in range(heads):
                start = 0
                for level, (h, w) in enumerate(shapes):
                    for k in range(points):
                        x = locations[b, q, m, level, k, 0].item() * w - 0.5
                        y = locations[b, q, m, level, k, 1].item() * h - 0.5
                        for row in (math.floor(y), math.floor(y) + 1):
                            for column in (math.floor(x), math.floor(x) + 1):
                                if 0 <= row < h and 0 <= column < w:
                                    share = (1 - abs(y - row)) * (1 - abs(x - column))
                                    read = value[b, start + row * w + column, m]
                                    out[b, q, m] += weights[b, q, m, level, k] * share * read
                    start += h * w
    return out.flatten(2)


def inputs(
    dtype: torch.dtype, batch: int = 2, queries: int = 3, heads: int = 2, width: int = 3, points: int = 2
) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(3)
    places = sum(h * w for h, w in SHAPES)
    value = torch.randn(batch, places, heads, width, generator=g, dtype=dtype)
    # from -0.3 to 1.3: inside, across the border and beyond it
    locations = (
        torch.rand(batch, queries, heads, len(SHAPES), points, 2, generator=g, dtype=dtype) * 1.6 - 0.3
    )
    weights = torch.rand(batch, queries, heads, len(SHAPES), points, generator=g, dtype=dtype)
    return value, locations, weights


@pytest.fixture(params=["kept", "resampled", "image by image"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each way in which the plain path can compute, by the size it would otherwise take."""
    if request.param != "kept":
        monkeypatch.setattr(module, "KEPT_BUDGET", 0)
    if request.param == "image by image":
        monkeypatch.setattr(module, "SAMPLED_BUDGET", 1)
    return request.param


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("with_gradient", [False, True])
def test_values_equal_the_loop(way: str, dtype: torch.dtype, tolerance: float, with_gradient: bool) -> None:
    value, locations, weights = inputs(dtype)
    expected = by_loop(value, SHAPES, locations, weights)
    value.requires_grad_(with_gradient)
    found = deformable_attention(value, SHAPES, locations, weights)
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def test_all_three_gradients(way: str) -> None:
    tensors = tuple(t.requires_grad_() for t in inputs(torch.float64))
    assert torch.autograd.gradcheck(lambda v, p, w: deformable_attention(v, SHAPES, p, w), tensors)


@pytest.mark.parametrize("width", [24, 48])  # head widths of ViT-S and ViT-B adapters
def test_head_widths_that_are_no_power_of_two(way: str, width: int) -> None:
    value, locations, weights = inputs(torch.float64, batch=1, width=width)
    expected = by_loop(value, SHAPES, locations, weights)
    found = deformable_attention(value.requires_grad_(), SHAPES, locations, weights)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_a_large_layer_keeps_only_its_inputs_for_the_backward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """No sampled features are held: they are L * P times the size of the output."""
    monkeypatch.setattr(module, "KEPT_BUDGET", 0)
    tensors = [t.requires_grad_() for t in inputs(torch.float32, width=64, points=4)]
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        deformable_attention(tensors[0], SHAPES, tensors[1], tensors[2])
    assert sum(kept) == sum(t.numel() for t in tensors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_resampling_operator_is_registered_as_it_computes(dtype: torch.dtype) -> None:
    value, locations, weights = inputs(torch.float32)
    leaves = [t.requires_grad_() for t in (value.to(dtype), locations, weights)]
    sides = [side for shape in SHAPES for side in shape]
    found = torch.library.opcheck(module.resampled_attention, (leaves[0], sides, *leaves[1:]))
    assert set(found.values()) == {"SUCCESS"}


def test_bfloat16_values_are_read_at_float32_places() -> None:
    """On a row of 1024 columns, bfloat16 coordinates could name every fourth column only."""
    columns = torch.arange(1024)
    value = (columns % 128).to(torch.bfloat16).view(1, 1024, 1, 1)
    locations = ((columns + 0.5) / 1024).view(1, 1024, 1, 1, 1, 1)
    places = torch.cat((locations, torch.full_like(locations, 0.5)), -1)
    out = deformable_attention(value, ((1, 1024),), places, torch.ones(1, 1024, 1, 1, 1))
    assert out.dtype is torch.bfloat16
    assert torch.equal(out.flatten().round(), value.flatten())


def test_module_equals_transformers() -> None:
    torch.manual_seed(0)
    width = 32
    ours, theirs = (
        DeformableAttention(width, 3, num_heads=4),
        TheirAttention(width, 4, n_levels=3, n_points=4),
    )
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.normal_(std=0.3)
    theirs.load_state_dict(ours.state_dict())
    features = torch.randn(2, sum(h * w for h, w in SHAPES), width)
    points = reference_points(SHAPES, torch.device("cpu"))
    position = torch.randn_like(features)
    expected, _ = theirs(
        hidden_states=features,
        encoder_hidden_states=features,
        position_embeddings=position,
        reference_points=points[None, :, None].expand(2, -1, 3, -1),
        spatial_shapes_list=list(SHAPES),
    )
    found = ours(features + position, points, features, SHAPES)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_initial_offsets_point_in_all_directions() -> None:
    attention = DeformableAttention(32, num_levels=2, num_heads=8)
    bias = attention.sampling_offsets.bias.detach().view(8, 2, 4, 2)
    assert torch.equal(bias[:, 0], bias[:, 1])  # levels alike
    for head in range(8):
        angle = 2 * math.pi * head / 8
        direction = torch.tensor([math.cos(angle), math.sin(angle)])
        for k in range(4):
            expected = direction / direction.abs().max() * (k + 1)
            torch.testing.assert_close(bias[head, 0, k], expected, rtol=1e-6, atol=1e-6)
    for layer in (
        attention.sampling_offsets.weight,
        attention.attention_weights.weight,
        attention.value_proj.bias,
    ):
        assert not layer.any()


def test_reference_points_are_centres() -> None:
    points = reference_points(((2, 4), (1, 1)), torch.device("cpu"))
    assert points.shape == (9, 2)
    assert points[1].tolist() == [1.5 / 4, 0.5 / 2]
    assert points[6].tolist() == [2.5 / 4, 1.5 / 2]
    assert points[8].tolist() == [0.5, 0.5]
