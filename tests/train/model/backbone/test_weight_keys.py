"""Key translation: every row of the published map, and files of either origin cover the model exactly."""

import pytest
import torch

from maskshards.train.model.backbone.architectures import ARCHITECTURES, DINOV2, DINOV3
from maskshards.train.model.backbone.load import load_backbone
from maskshards.train.model.backbone.weight_keys import canonical_name, from_hub, from_meta, is_meta_style


@pytest.mark.parametrize(
    ("meta", "hub"),
    [
        ("cls_token", "embeddings.cls_token"),
        ("storage_tokens", "embeddings.register_tokens"),
        ("patch_embed.proj.weight", "embeddings.patch_embeddings.weight"),
        ("blocks.7.norm1.bias", "layer.7.norm1.bias"),
        ("blocks.7.attn.proj.weight", "layer.7.attention.o_proj.weight"),
        ("blocks.7.ls1.gamma", "layer.7.layer_scale1.lambda1"),
        ("blocks.7.ls2.gamma", "layer.7.layer_scale2.lambda1"),
        ("blocks.7.mlp.fc1.weight", "layer.7.mlp.up_proj.weight"),
        ("blocks.7.mlp.fc2.bias", "layer.7.mlp.down_proj.bias"),
        ("blocks.7.mlp.w1.weight", "layer.7.mlp.gate_proj.weight"),
        ("blocks.7.mlp.w2.weight", "layer.7.mlp.up_proj.weight"),
        ("blocks.7.mlp.w3.weight", "layer.7.mlp.down_proj.weight"),
        ("norm.weight", "norm.weight"),
    ],
)
def test_one_to_one_rows_of_the_dinov3_map(meta: str, hub: str) -> None:
    tensor = torch.randn(2)
    assert list(from_meta(f"module.backbone.{meta}", tensor, DINOV3)) == [(hub, tensor)]


def test_rows_of_the_dinov3_map_that_split_reshape_or_vanish() -> None:
    qkv = torch.arange(12.0).view(6, 2)
    found = dict(from_meta("blocks.0.attn.qkv.weight", qkv, DINOV3))
    assert list(found) == [f"layer.0.attention.{x}_proj.weight" for x in "qkv"]
    assert torch.equal(found["layer.0.attention.k_proj.weight"], qkv[2:4])
    assert list(dict(from_meta("blocks.0.attn.qkv.bias", qkv[:, 0], DINOV3))) == [
        "layer.0.attention.q_proj.bias",
        "layer.0.attention.v_proj.bias",
    ]
    ((name, mask),) = from_meta("mask_token", torch.zeros(1, 4), DINOV3)
    assert (name, tuple(mask.shape)) == ("embeddings.mask_token", (1, 1, 4))
    for gone in ("rope_embed.periods", "local_cls_norm.weight", "blocks.0.attn.qkv.bias_mask"):
        assert list(from_meta(gone, qkv, DINOV3)) == []


def test_dinov2_keeps_its_key_bias_and_splits_its_gated_projection() -> None:
    tensor = torch.arange(6.0)
    names = [name for name, _ in from_meta("blocks.3.attn.qkv.bias", tensor, DINOV2)]
    assert names == [f"encoder.layer.3.attention.{x}_proj.bias" for x in "qkv"]
    gate, up = from_meta("blocks.3.mlp.w12.bias", tensor, DINOV2)
    assert (gate[0], gate[1].tolist()) == ("encoder.layer.3.mlp.gate_proj.bias", [0, 1, 2])
    assert (up[0], up[1].tolist()) == ("encoder.layer.3.mlp.up_proj.bias", [3, 4, 5])
    assert next(from_meta("pos_embed", tensor, DINOV2))[0] == "embeddings.position_embeddings"
    assert next(from_meta("mask_token", tensor[None], DINOV2))[1].shape == (1, 6)


def test_old_and_new_hub_spellings_meet() -> None:
    assert canonical_name("model.layer.0.norm1.weight") == canonical_name("layer.0.norm1.weight")
    old = "dinov2.encoder.layer.1.attention.attention.query.bias"
    assert canonical_name(old) == canonical_name("encoder.layer.1.attention.q_proj.bias")
    fused = dict(from_hub("encoder.layer.1.mlp.weights_in.weight", torch.zeros(4, 3)))
    assert list(fused) == ["encoder.layer.1.mlp.gate_proj.weight", "encoder.layer.1.mlp.up_proj.weight"]


def test_styles_are_told_apart() -> None:
    assert is_meta_style(["cls_token", "backbone.blocks.0.norm1.weight"])
    assert not is_meta_style(["embeddings.cls_token", "layer.0.norm1.weight"])


def test_an_unknown_key_keeps_its_name() -> None:
    tensor = torch.zeros(1)
    assert list(from_meta("head.weight", tensor, DINOV3)) == [("head.weight", tensor)]


def test_every_parameter_of_every_model_has_a_canonical_name_of_its_own() -> None:
    for name in ARCHITECTURES:
        keys = list(load_backbone(name, "random", device="meta").vit.state_dict())
        assert len({canonical_name(key) for key in keys}) == len(keys)
