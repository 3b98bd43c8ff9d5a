"""Names, sizes and block indices of the backbones against the published tables."""

import pytest
import torch

from maskshards.train.model.backbone.architectures import (
    ARCHITECTURES,
    ModelError,
    architecture,
    layer_indices,
)
from maskshards.train.model.backbone.load import load_backbone

# name: width, blocks, heads, gated, parameters of Meta's module
DINOV3 = {
    "dinov3_vits16": (384, 12, 6, False, 21_601_152),
    "dinov3_vits16plus": (384, 12, 6, True, 28_697_472),
    "dinov3_vitb16": (768, 12, 12, False, 85_669_632),
    "dinov3_vitl16": (1024, 24, 16, False, 303_154_176),
    "dinov3_vitl16plus": (1024, 24, 16, True, 403_915_776),
    "dinov3_vith16plus": (1280, 32, 20, True, 840_633_600),
    "dinov3_vit7b16": (4096, 40, 32, True, 6_716_043_264),
}


@pytest.mark.parametrize("name", DINOV3)
def test_dinov3_sizes(name: str) -> None:
    width, blocks, heads, gated, parameters = DINOV3[name]
    arch = architecture(name)
    assert (arch.embed_dim, arch.num_blocks, arch.patch_px, arch.gated) == (width, blocks, 16, gated)
    assert arch.settings["num_attention_heads"] == heads
    vit = load_backbone(name, "random", device="meta").vit
    # Meta's module has a key bias (masked away) wherever it has a qkv bias; its 7B unties one LayerNorm more.
    absent = blocks * width if name != "dinov3_vit7b16" else 2 * width
    assert sum(p.numel() for p in vit.parameters()) == parameters - absent


def test_dinov2_names_come_with_and_without_registers() -> None:
    for size, width in (("s", 384), ("b", 768), ("l", 1024), ("g", 1536)):
        plain, registers = architecture(f"dinov2_vit{size}14"), architecture(f"dinov2_vit{size}14_reg")
        assert plain.embed_dim == registers.embed_dim == width
        assert (plain.patch_px, plain.family, registers.family) == (14, "dinov2", "dinov2_with_registers")
        assert plain.hub_id != registers.hub_id


def test_an_unknown_name_is_an_error_that_offers_the_nearest() -> None:
    with pytest.raises(ModelError, match="did you mean 'dinov3_vitl16'"):
        architecture("dinov3_vit_l16")


@pytest.mark.parametrize(
    ("name", "last", "four", "even"),
    [
        ("dinov3_vitb16", (11,), (8, 9, 10, 11), (2, 5, 8, 11)),
        ("dinov3_vitl16", (23,), (20, 21, 22, 23), (4, 11, 17, 23)),
        ("dinov3_vith16plus", (31,), (28, 29, 30, 31), (7, 15, 23, 31)),
        ("dinov3_vit7b16", (39,), (36, 37, 38, 39), (9, 19, 29, 39)),
    ],
)
def test_layer_indices(name: str, last: tuple[int], four: tuple[int, ...], even: tuple[int, ...]) -> None:
    depth = ARCHITECTURES[name].num_blocks
    assert layer_indices("LAST", depth) == last
    assert layer_indices("FOUR_LAST", depth) == four
    assert layer_indices("FOUR_EVEN_INTERVALS", depth) == even


def test_an_unknown_choice_of_layers_is_an_error() -> None:
    with pytest.raises(ModelError, match="FOUR_EVEN_INTERVALS"):
        layer_indices("EVERY", 12)


@pytest.mark.parametrize(
    "name", ["dinov3_vits16plus", "dinov3_vit7b16", "dinov2_vits14", "dinov2_vitg14_reg"]
)
def test_each_kind_can_be_built_and_run_without_memory(name: str) -> None:
    backbone = load_backbone(name, "random", device="meta")
    side = 2 * backbone.patch_px
    (patches,) = backbone(torch.empty(1, 3, side, side, device="meta"), (backbone.num_blocks - 1,))
    assert patches.shape == (1, backbone.embed_dim, 2, 2)
