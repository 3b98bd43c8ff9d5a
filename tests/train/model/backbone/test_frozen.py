"""The frozen backbone against transformers' own forward pass, and that it stays frozen."""

import pytest
import torch
from torch import nn

from maskshards.train.model.backbone.architectures import ModelError
from maskshards.train.model.backbone.frozen import FrozenBackbone
from maskshards.train.model.backbone.load import load_backbone

NAMES = ("dinov3_tiny16", "dinov2_tiny14")


@pytest.fixture(params=NAMES)
def backbone(request: pytest.FixtureRequest) -> FrozenBackbone:
    return load_backbone(request.param, "random")


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
