"""Files as training scripts leave them load as the plain file does; what is ambiguous is refused."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from maskshards.train.model.backbone.architectures import architecture
from maskshards.train.model.backbone.load import FAMILIES, load_backbone
from maskshards.train.model.backbone.weight_wrappers import WrapperError, backbone_names
from tests.train.model.backbone.test_load import meta_state

State = dict[str, Any]


def under(prefix: str, state: State) -> State:
    return {prefix + key: value for key, value in state.items()}


def chunked(key: str) -> str:
    return re.sub(r"^blocks\.(\d+)\.", lambda match: f"blocks.{int(match[1]) // 2}.{match[1]}.", key)


HEADS = {"dino_head.mlp.0.weight": torch.zeros(4, 64), "ibot_head.mlp.0.weight": torch.zeros(4, 64)}
FORMS: dict[str, Callable[[State, State], State]] = {
    "teacher": lambda s, _: {"teacher": s},
    "teacher with heads": lambda s, _: {"teacher": under("backbone.", s) | HEADS},
    "student beside teacher": lambda s, other: {
        "model": under("student.backbone.", other) | under("teacher.backbone.", s),
        "iteration": 5,
    },
    "state_dict": lambda s, _: {"state_dict": s, "epoch": 3},
    "lightning": lambda s, _: {"state_dict": under("model.backbone.", s), "epoch": 3},
    "data parallel": lambda s, _: under("module.backbone.", s),
    "compiled": lambda s, _: under("_orig_mod.", s),
    "compiled inside": lambda s, _: {"teacher": under("backbone._orig_mod.", s)},
    "sharded": lambda s, _: {f"_fsdp_wrapped_module.{key}": value for key, value in s.items()},
    "encoder": lambda s, _: under("encoder.", s),
    "chunks of blocks": lambda s, _: {chunked(key): value for key, value in s.items()},
    "classifier": lambda s, _: s | {"head.weight": torch.zeros(10, 64), "head.bias": torch.zeros(10)},
    "average": lambda s, other: {"model": other, "model_ema": s},
}


def vit_of(name: str, seed: int) -> torch.nn.Module:
    arch = architecture(name)
    config, model = FAMILIES[arch.family]
    torch.manual_seed(seed)
    vit = model(config(**arch.settings))
    with torch.no_grad():
        for value in vit.parameters():
            value.add_(torch.randn(value.shape) * 0.02)
    return vit


def digest_of(state: State, path: Path, name: str = "dinov2_tiny14") -> str:
    torch.save(state, path)
    return load_backbone(name, str(path)).digest


@pytest.mark.parametrize("form", FORMS)
def test_every_wrapping_gives_the_plain_files_weights(form: str, tmp_path: Path) -> None:
    plain, other = (meta_state(vit_of("dinov2_tiny14", seed), "dinov2_tiny14") for seed in (0, 1))
    assert digest_of(FORMS[form](plain, other), tmp_path / "a.pth") == digest_of(plain, tmp_path / "b.pth")


def test_two_backbones_of_which_none_is_the_teacher_are_refused() -> None:
    names = [f"{part}.patch_embed.proj.weight" for part in ("left", "right")]
    with pytest.raises(WrapperError, match=r"holds 2 backbones, under 'left\.', 'right\.'"):
        backbone_names(names, "x.pth")
    assert backbone_names(["a", "b"], "x.pth") == {"a": "a", "b": "b"}


def timm_state(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """Meta's spelling as timm rewrites it when it publishes the same weights."""
    out = {
        key: value for key, value in state.items() if not key.endswith(("mask_token", "bias_mask", "periods"))
    }
    if name.startswith("dinov2"):
        if "register_tokens" in out:  # the class token's position is added to the token
            out["reg_token"] = out.pop("register_tokens")
            out["cls_token"] = out["cls_token"] + out["pos_embed"][:, 0]
            out["pos_embed"] = out["pos_embed"][:, 1:]
        return {key.replace("mlp.w12", "mlp.fc1").replace("mlp.w3", "mlp.fc2"): out[key] for key in out}
    renamed: dict[str, Tensor] = {}
    for key, value in out.items():
        key = key.replace("storage_tokens", "reg_token").replace("ls1.gamma", "gamma_1")
        key = (
            key.replace("ls2.gamma", "gamma_2").replace("mlp.w1", "mlp.fc1_g").replace("mlp.w2", "mlp.fc1_x")
        )
        key = key.replace("mlp.w3", "mlp.fc2")
        if key.endswith("attn.qkv.bias"):
            renamed[key.replace("qkv.bias", "q_bias")], _, renamed[key.replace("qkv.bias", "v_bias")] = (
                value.chunk(3)
            )
        else:
            renamed[key] = value
    return renamed


@pytest.mark.parametrize("name", ["dinov2_tiny14", "dinov3_tiny16"])
def test_timms_names_give_the_same_features(name: str, tmp_path: Path) -> None:
    plain = meta_state(vit_of(name, 0), name)
    digest_of(plain, tmp_path / "meta.pth", name)
    digest_of(timm_state(plain, name), tmp_path / "timm.pth", name)
    ours, theirs = (load_backbone(name, str(tmp_path / f"{kind}.pth")) for kind in ("meta", "timm"))
    images = torch.randn(1, 3, 112, 112)
    for one, other in zip(ours(images, (1, 3)), theirs(images, (1, 3)), strict=True):
        torch.testing.assert_close(one, other)


def test_timms_models_without_biases_have_zero_ones(tmp_path: Path) -> None:
    name = "dinov3_tiny16"
    plain = meta_state(vit_of(name, 0), name)
    for key in [key for key in plain if key.endswith("qkv.bias")]:
        plain[key] = torch.zeros_like(plain[key])
    without = {key: value for key, value in timm_state(plain, name).items() if not key.endswith("_bias")}
    digest_of(plain, tmp_path / "meta.pth", name)
    digest_of(without, tmp_path / "timm.pth", name)
    ours, theirs = (load_backbone(name, str(tmp_path / f"{kind}.pth")) for kind in ("meta", "timm"))
    images = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(ours(images, (3,)), theirs(images, (3,)))


def test_positions_without_a_class_token_get_an_empty_one() -> None:
    from maskshards.train.model.backbone.weight_keys import from_meta

    positions = torch.randn(1, 16, 4)
    ((name, found),) = from_meta("pos_embed", positions, "dinov2_with_registers")
    assert name == "embeddings.position_embeddings"
    assert torch.equal(found[:, 1:], positions)
    assert not found[:, 0].any()
    ((_, kept),) = from_meta("pos_embed", torch.randn(1, 17, 4), "dinov2_with_registers")
    assert kept.shape == (1, 17, 4)


def test_timms_gated_layers_are_split_as_metas() -> None:
    from maskshards.train.model.backbone.weight_keys import from_meta

    packed = torch.arange(6.0)
    meta = list(from_meta("blocks.3.mlp.w12.bias", packed, "dinov2", True))
    timm = list(from_meta("blocks.3.mlp.fc1.bias", packed, "dinov2", True))
    assert [name for name, _ in meta] == [name for name, _ in timm]
    assert all(torch.equal(one, other) for (_, one), (_, other) in zip(meta, timm, strict=True))
    (down,) = from_meta("blocks.3.mlp.fc2.bias", packed, "dinov2", True)
    assert down[0] == "encoder.layer.3.mlp.down_proj.bias"
    (gate,) = from_meta("blocks.3.mlp.fc1_g.bias", packed, "dinov3_vit", True)
    assert gate[0] == "layer.3.mlp.gate_proj.bias"
