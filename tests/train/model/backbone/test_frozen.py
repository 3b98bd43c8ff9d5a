"""The frozen backbone against transformers' own forward pass, and that it stays frozen."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from transformers import Dinov2Config, Dinov2Model

from maskshards.train.model.backbone.architectures import OFFSET, SIZE, ModelError
from maskshards.train.model.backbone.frozen import FrozenBackbone, offset_positions
from maskshards.train.model.backbone.load import load_backbone

NAMES = ("dinov3_tiny16", "dinov2_tiny14")


@pytest.fixture(params=NAMES)
def backbone(request: pytest.FixtureRequest) -> FrozenBackbone:
    rule = SIZE if request.param.startswith("dinov2") else None  # transformers' rule: it is the oracle here
    return load_backbone(request.param, "random", rule=rule)


def block_outputs(backbone: FrozenBackbone, images: torch.Tensor) -> list[torch.Tensor]:
    """What transformers' forward computes in each block, caught by hooks, then normed: the oracle."""
    vit, caught = backbone.vit, []
    layers = (vit.model if hasattr(vit, "model") else vit.encoder).layer
    handles = [
        layer.register_forward_hook(
            lambda _m, _i, out: caught.append(out[0] if isinstance(out, tuple) else out)
        )
        for layer in layers
    ]
    with torch.no_grad():
        last = vit(images).last_hidden_state
    for handle in handles:
        handle.remove()
    norm = vit.norm if hasattr(vit, "norm") else vit.layernorm
    normed = [norm(tokens) for tokens in caught]
    torch.testing.assert_close(normed[-1], last)
    return normed


def test_maps_are_the_normed_patch_tokens_of_the_blocks(backbone: FrozenBackbone) -> None:
    p = backbone.patch_px
    images = torch.randn(2, 3, 3 * p, 5 * p, generator=torch.Generator().manual_seed(1))
    expected = block_outputs(backbone, images)
    maps = backbone(images, (0, 2, 3))
    for index, found in zip((0, 2, 3), maps, strict=True):
        tokens = expected[index][:, -15:]
        for row in range(3):
            for column in range(5):
                torch.testing.assert_close(found[:, :, row, column], tokens[:, row * 5 + column])


def test_blocks_after_the_last_wanted_one_are_not_run(backbone: FrozenBackbone) -> None:
    ran = []
    layers = (backbone.vit.model if hasattr(backbone.vit, "model") else backbone.vit.encoder).layer
    for i, layer in enumerate(layers):
        layer.register_forward_hook(lambda *_, i=i: ran.append(i))
    backbone(torch.randn(1, 3, 2 * backbone.patch_px, 2 * backbone.patch_px), (1,))
    assert ran == [0, 1]


def test_training_its_owner_changes_nothing(backbone: FrozenBackbone) -> None:
    side = 4 * backbone.patch_px
    images = torch.randn(1, 3, side, side)
    before = backbone(images, (3,))[0]
    owner = nn.ModuleDict({"backbone": backbone, "head": nn.Linear(2, 2)})
    owner.train()
    assert owner.training
    assert not any(module.training for module in backbone.modules())
    after = backbone(images, (3,))[0]
    assert torch.equal(before, after)
    assert not after.requires_grad
    assert not any(p.requires_grad for p in backbone.parameters())


def test_even_a_model_set_to_training_by_force_has_no_random_positions() -> None:
    backbone = load_backbone("dinov3_tiny16", "random")
    images = torch.randn(1, 3, 32, 32)
    before = backbone(images, (3,))[0]
    backbone.vit.train()
    assert torch.equal(backbone(images, (3,))[0], before)


def test_bfloat16_matrices_give_bit_for_bit_what_autocast_over_float32_gives() -> None:
    images = torch.randn(1, 3, 64, 96)
    full, half = (load_backbone("dinov3_tiny16", "random", dtype=d) for d in (torch.float32, torch.bfloat16))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = full(images, (0, 3))
    found = half(images, (0, 3))
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    assert half.vit.model.layer[0].attention.q_proj.weight.dtype is torch.bfloat16
    assert half.vit.norm.weight.dtype is torch.float32


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_compiled_blocks_give_what_plain_ones_give(backbone: FrozenBackbone, backend: str) -> None:
    side = 2 * backbone.patch_px
    images = [torch.randn(1, 3, side, side), torch.randn(2, 3, 2 * side, side)]
    expected = [backbone(x, (1, 3)) for x in images]
    backbone.compile_blocks(backend=backend)
    try:
        for x, maps in zip(images, expected, strict=True):
            for found, wanted in zip(backbone(x, (1, 3)), maps, strict=True):
                torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    finally:
        torch.compiler.reset()


def test_a_size_that_does_not_divide_is_an_error(backbone: FrozenBackbone) -> None:
    with pytest.raises(ModelError, match="does not divide"):
        backbone(torch.randn(1, 3, 70, 75), (3,))


def cubic(distance: float) -> float:
    """Keys' kernel with a = -0.75, as PyTorch's bicubic has it."""
    a, d = -0.75, abs(distance)
    if d <= 1:
        return (a + 2) * d**3 - (a + 3) * d**2 + 1
    return a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a if d < 2 else 0.0


def resized_twin(square: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """DINOv2's rule a value at a time: (side, side, D) -> (h, w, D); out of the table its edge counts."""
    side = len(square)
    out = np.zeros((*grid, square.shape[2]))
    for y, x in np.ndindex(*grid):
        centre = [
            (place + 0.5) * side / (length + 0.1) - 0.5 for place, length in zip((y, x), grid, strict=True)
        ]
        for row in range(math.floor(centre[0]) - 1, math.floor(centre[0]) + 3):
            for column in range(math.floor(centre[1]) - 1, math.floor(centre[1]) + 3):
                weight = cubic(centre[0] - row) * cubic(centre[1] - column)
                out[y, x] += weight * square[min(max(row, 0), side - 1), min(max(column, 0), side - 1)]
    return out


@pytest.mark.parametrize("grid", [(3, 5), (16, 16), (37, 36), (40, 20), (1, 1)])
def test_published_positions_equal_a_twin_that_goes_value_by_value(grid: tuple[int, int]) -> None:
    table = torch.randn(1, 1 + 37 * 37, 3, generator=torch.Generator().manual_seed(3))
    found = offset_positions(table, grid)
    expected = resized_twin(table[0, 1:].reshape(37, 37, 3).double().numpy(), grid)
    assert torch.equal(found[:, 0], table[:, 0])
    np.testing.assert_allclose(found[0, 1:].reshape(*grid, 3).numpy(), expected, atol=2e-4)
    by_size = nn.functional.interpolate(
        table[:, 1:].mT.unflatten(2, (37, 37)), size=grid, mode="bicubic", align_corners=False
    )
    assert np.abs(by_size[0].permute(1, 2, 0).numpy() - expected).max() > 0.02  # the two rules do differ


def test_the_published_rule_is_the_default_and_its_features_are_those_of_a_resized_table() -> None:
    """Transformers takes a table of the grid's own size as it is: with the twin's, it is the oracle."""
    backbone = load_backbone("dinov2_tiny14", "random")
    assert backbone.position_rule == OFFSET
    state = {key: value.clone() for key, value in backbone.vit.state_dict().items()}
    name = "embeddings.position_embeddings"
    square = state[name][0, 1:].reshape(37, 37, -1).double().numpy()
    resized = torch.from_numpy(resized_twin(square, (5, 5))).float().reshape(1, 25, -1)
    state[name] = torch.cat((state[name][:, :1], resized), dim=1)
    small = Dinov2Model(Dinov2Config(**backbone.arch.settings | {"image_size": 70})).eval()
    small.load_state_dict(state)
    images = torch.randn(2, 3, 70, 70, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        expected = small(images).last_hidden_state[:, 1:].mT.unflatten(2, (5, 5))
    torch.testing.assert_close(backbone(images, (3,))[0], expected, rtol=1e-4, atol=1e-4)
    by_size = load_backbone("dinov2_tiny14", "random", rule=SIZE)(images, (3,))[0]
    assert not torch.allclose(by_size, expected, rtol=1e-4, atol=1e-4)


def test_at_the_size_of_the_table_both_rules_take_it_as_it_is() -> None:
    images = torch.randn(1, 3, 518, 518, generator=torch.Generator().manual_seed(5))
    first, second = (
        load_backbone("dinov2_tiny14", "random", rule=r)(images, (0,))[0] for r in (OFFSET, SIZE)
    )
    assert torch.equal(first, second)


def test_a_rule_is_refused_where_there_is_none_or_no_such() -> None:
    with pytest.raises(ModelError, match=r"model\.position_rule='even': expected offset or size"):
        load_backbone("dinov2_tiny14", "random", rule="even")
    with pytest.raises(ModelError, match=r"dinov3_tiny16 has one rule only"):
        load_backbone("dinov3_tiny16", "random", rule=SIZE)
    assert load_backbone("dinov2_vits14_reg", "random", device="meta").position_rule is None
