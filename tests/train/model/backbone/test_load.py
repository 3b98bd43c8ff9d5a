"""Loading: the same weights from every kind of file give the same features; wrong ones are listed."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModel

from maskshards.train.model.backbone import architectures
from maskshards.train.model.backbone import load as module
from maskshards.train.model.backbone.architectures import SIZE, ModelError, architecture
from maskshards.train.model.backbone.load import FAMILIES, load_backbone
from maskshards.train.model.backbone.weight_files import WeightsError

NAMES = ("dinov3_tiny16", "dinov2_tiny14")


@pytest.fixture
def tuned() -> dict[str, torch.nn.Module]:
    """Models of transformers whose every parameter, biases and scales included, is random."""
    models = {}
    for i, name in enumerate(NAMES):
        arch = architecture(name)
        config, model = FAMILIES[arch.family]
        torch.manual_seed(i)
        models[name] = model(config(**arch.settings)).eval()
        with torch.no_grad():
            for parameter in models[name].parameters():
                parameter.normal_(std=0.2)
    return models


def meta_state(vit: torch.nn.Module, name: str) -> dict[str, Tensor]:
    """The model's weights as Meta's files would hold them, written from the published map."""
    w, out = dict(vit.state_dict()), {}
    v3 = name.startswith("dinov3")
    block, embed = (
        ("model.layer", "embeddings.patch_embeddings")
        if v3
        else ("encoder.layer", "embeddings.patch_embeddings.projection")
    )
    out["cls_token"], out["mask_token"] = w["embeddings.cls_token"], w["embeddings.mask_token"].view(1, -1)
    if v3:
        out["storage_tokens"] = w["embeddings.register_tokens"]
        out["rope_embed.periods"] = torch.ones(4)
    else:
        out["pos_embed"] = w["embeddings.position_embeddings"]
        if "embeddings.register_tokens" in w:
            out["register_tokens"] = w["embeddings.register_tokens"]
    final = "norm" if v3 else "layernorm"
    for part in ("weight", "bias"):
        out[f"patch_embed.proj.{part}"] = w[f"{embed}.{part}"]
        out[f"norm.{part}"] = w[f"{final}.{part}"]
    for i in range(4):
        old, new = f"{block}.{i}", f"blocks.{i}"
        projections = [f"{old}.attention.{x}_proj" for x in "qkv"]
        out[f"{new}.attn.qkv.weight"] = torch.cat([w[f"{p}.weight"] for p in projections])
        width = w[f"{projections[0]}.weight"].shape[0]
        biased = f"{projections[0]}.bias" in w
        if biased:
            out[f"{new}.attn.qkv.bias"] = torch.cat(
                [w.get(f"{p}.bias", torch.full((width,), 9.0)) for p in projections]
            )  # a masked bias may be anything
        if v3 and biased:
            out[f"{new}.attn.qkv.bias_mask"] = torch.cat(
                [torch.ones(width), torch.zeros(width), torch.ones(width)]
            )
        plain, gated = ("up_proj", "down_proj") if v3 else ("fc1", "fc2"), ("gate_proj", "up_proj")
        pairs = {"attn.proj": "attention.o_proj", "mlp.fc1": f"mlp.{plain[0]}", "mlp.fc2": f"mlp.{plain[1]}"}
        if f"{old}.mlp.gate_proj.weight" in w:
            pairs = {"attn.proj": "attention.o_proj", "mlp.w3": "mlp.down_proj"}
            if v3:
                pairs |= {"mlp.w1": "mlp.gate_proj", "mlp.w2": "mlp.up_proj"}
            else:  # both in one matrix
                for part in ("weight", "bias"):
                    out[f"{new}.mlp.w12.{part}"] = torch.cat([w[f"{old}.mlp.{x}.{part}"] for x in gated])
        for meta, hub in {**pairs, "norm1": "norm1", "norm2": "norm2"}.items():
            for part in ("weight", "bias"):
                out[f"{new}.{meta}.{part}"] = w[f"{old}.{hub}.{part}"]
        for k in (1, 2):
            out[f"{new}.ls{k}.gamma"] = w[f"{old}.layer_scale{k}.lambda1"]
    return {key: tensor.clone() for key, tensor in out.items()}


def theirs(name: str) -> str | None:
    """Transformers' rule for positions, where there is a choice."""
    return SIZE if architecture(name).position_rules else None


def features_of(vit: torch.nn.Module, images: Tensor, patch: int) -> Tensor:
    with torch.no_grad():
        tokens = vit(images).last_hidden_state
    grid = (images.shape[-2] // patch, images.shape[-1] // patch)
    return tokens[:, -grid[0] * grid[1] :].transpose(1, 2).unflatten(2, grid)


@pytest.mark.parametrize("name", NAMES)
def test_every_kind_of_file_gives_the_features_of_transformers(
    name: str, tuned: dict[str, torch.nn.Module], tmp_path: Path
) -> None:
    vit = tuned[name]
    vit.save_pretrained(tmp_path / "folder")
    meta = meta_state(vit, name)
    torch.save(meta, tmp_path / "plain.pth")
    torch.save({"teacher": {f"backbone.{k}": v for k, v in meta.items()}}, tmp_path / "teacher.pth")
    save_file(meta, tmp_path / "meta.safetensors")
    save_file({k: v.contiguous() for k, v in vit.state_dict().items()}, tmp_path / "memory.safetensors")
    patch = architecture(name).patch_px
    images = torch.randn(1, 3, 3 * patch, 2 * patch)
    expected = features_of(vit, images, patch)
    digests = set()
    for file in ("folder", "plain.pth", "teacher.pth", "meta.safetensors", "memory.safetensors"):
        backbone = load_backbone(name, str(tmp_path / file), rule=theirs(name))
        torch.testing.assert_close(backbone(images, (3,))[0], expected)
        digests.add(backbone.digest)
    assert len(digests) == 1
    assert len(digests.pop()) == 64


KINDS = {  # small models of every kind in the table that the tiny ones are not
    "dinov3 gated": ("dinov3_vits16plus", {"intermediate_size": 96}),
    "dinov3 gated without biases": ("dinov3_vit7b16", {"intermediate_size": 96}),
    "dinov2 gated": ("dinov2_vitg14", {}),
    "dinov2 with registers": ("dinov2_vits14_reg", {}),
    "dinov2 gated with registers": ("dinov2_vitg14_reg", {}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_files_of_every_kind_of_backbone_give_the_features_of_transformers(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, changes = KINDS[kind]
    small = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4} | changes
    arch = replace(architecture(name), settings=architecture(name).settings | small)
    monkeypatch.setattr(architectures, "ARCHITECTURES", {name: arch})
    config, model = FAMILIES[arch.family]
    torch.manual_seed(0)
    vit = model(config(**arch.settings)).eval()
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.normal_(std=0.2)
    vit.save_pretrained(tmp_path / "folder")
    torch.save(meta_state(vit, name), tmp_path / "meta.pth")
    images = torch.randn(1, 3, 3 * arch.patch_px, 2 * arch.patch_px)
    expected = features_of(vit, images, arch.patch_px)
    digests = set()
    for file in ("folder", "meta.pth"):
        backbone = load_backbone(name, str(tmp_path / file), rule=theirs(name))
        torch.testing.assert_close(backbone(images, (3,))[0], expected)
        digests.add(backbone.digest)
    assert len(digests) == 1


def test_the_digest_follows_the_values_and_not_the_type_they_are_kept_in(
    tuned: dict[str, torch.nn.Module], tmp_path: Path
) -> None:
    vit = tuned["dinov3_tiny16"]
    vit.save_pretrained(tmp_path)
    full = load_backbone("dinov3_tiny16", str(tmp_path))
    half = load_backbone("dinov3_tiny16", str(tmp_path), dtype=torch.bfloat16)
    assert full.digest == half.digest
    with torch.no_grad():
        vit.norm.bias[0] += 1e-3
    vit.save_pretrained(tmp_path)
    assert load_backbone("dinov3_tiny16", str(tmp_path)).digest != full.digest


def test_weights_do_not_change_with_their_file(tuned: dict[str, torch.nn.Module], tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save(meta_state(tuned["dinov3_tiny16"], "dinov3_tiny16"), path)
    backbone = load_backbone("dinov3_tiny16", str(path))
    images = torch.randn(1, 3, 32, 32)
    before = backbone(images, (3,))[0]
    with path.open("r+b") as file:
        file.write(b"\0" * path.stat().st_size)
    assert torch.equal(backbone(images, (3,))[0], before)


def test_random_weights_are_the_same_each_time_and_draw_nothing_from_the_process() -> None:
    state = torch.random.get_rng_state()
    first, second = (load_backbone("dinov3_tiny16", "random") for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert first.digest == second.digest == "random:0"
    for key, tensor in first.vit.state_dict().items():
        assert torch.equal(tensor, second.vit.state_dict()[key])
    block = first.vit.model.layer[0]
    assert abs(block.mlp.up_proj.weight.std().item() - 0.02) < 0.001
    assert not torch.equal(block.attention.q_proj.weight, block.attention.k_proj.weight)
    assert torch.equal(block.layer_scale1.lambda1, torch.ones(64))


def test_missing_unexpected_and_misshapen_keys_are_listed(
    tuned: dict[str, torch.nn.Module], tmp_path: Path
) -> None:
    good = meta_state(tuned["dinov3_tiny16"], "dinov3_tiny16")
    path = tmp_path / "w.pth"
    torch.save(
        {k: v for k, v in good.items() if not k.startswith("blocks.3.")} | {"strange.weight": torch.ones(1)},
        path,
    )
    with pytest.raises(WeightsError) as caught:
        load_backbone("dinov3_tiny16", str(path))
    text = str(caught.value)
    assert str(path) in text
    assert "missing (17): layer.3." in text
    assert "unexpected (1): strange.weight" in text
    torch.save(good | {"cls_token": torch.zeros(1, 1, 32)}, path)
    with pytest.raises(WeightsError, match=r"embeddings.cls_token is \(1, 1, 32\), expected \(1, 1, 64\)"):
        load_backbone("dinov3_tiny16", str(path))
    torch.save(good | {"blocks.1.norm1.bias": torch.zeros(3)}, path)
    with pytest.raises(WeightsError, match=r"layer.1.norm1.bias is \(3,\), expected \(64,\)"):
        load_backbone("dinov3_tiny16", str(path))
    del good["norm.bias"]
    torch.save(good | {"cls_token": torch.zeros(1, 1, 32)}, path)
    with pytest.raises(
        WeightsError, match=r"wrong shape \(1\): embeddings.cls_token(?s:.*)missing \(1\): norm.bias"
    ):
        load_backbone("dinov3_tiny16", str(path))


def test_a_folder_of_another_model_names_the_one_that_fits(
    tuned: dict[str, torch.nn.Module], tmp_path: Path
) -> None:
    tuned["dinov2_tiny14"].save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match=r"not dinov3_vits16.*model.dino_hub=dinov2_tiny14 would fit"):
        load_backbone("dinov3_vits16", str(tmp_path))


def test_a_folder_of_the_gated_sister_is_told_apart(tmp_path: Path) -> None:
    arch = architecture("dinov3_vits16plus")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": arch.family, **arch.settings}))
    with pytest.raises(
        WeightsError, match=r"gated True \(expected False\); model.dino_hub=dinov3_vits16plus"
    ):
        load_backbone("dinov3_vits16", str(tmp_path))


def test_what_cannot_be_asked_for() -> None:
    with pytest.raises(ModelError, match="float32 or bfloat16"):
        load_backbone("dinov3_tiny16", "random", dtype=torch.float16)
    with pytest.raises(ModelError, match="meta device holds no weights"):
        load_backbone("dinov3_tiny16", ".", device="meta")


def test_entries_are_placed_one_at_a_time(
    tuned: dict[str, torch.nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A 27 GB file must not lie in memory twice: each entry is let go before the next is read."""
    import weakref

    alive: list[int] = []
    seen: list[weakref.ref[Tensor]] = []
    source = {module.canonical_name(k): v for k, v in tuned["dinov3_tiny16"].state_dict().items()}

    def entries() -> object:
        for name in source:
            tensor = source[name].clone()
            seen.append(weakref.ref(tensor))
            yield name, tensor
            del tensor
            alive.append(sum(ref() is not None for ref in seen))

    arch = architecture("dinov3_tiny16")
    config, model = FAMILIES[arch.family]
    with torch.device("meta"):
        vit = model(config(**arch.settings))
    module.fill(vit, entries(), "x", matrix_dtype=torch.bfloat16, device=torch.device("cpu"))  # type: ignore[arg-type]
    assert len(seen) == len(source)
    assert max(alive) <= 1


def test_a_pretrained_dinov2_folder_loads_and_equals_transformers() -> None:
    root = os.environ.get("MASKSHARDS_TEST_MODELS")
    if not root:
        pytest.skip("MASKSHARDS_TEST_MODELS names no folder with pretrained models")
    folder = Path(root) / "dinov2_vits14"
    backbone = load_backbone("dinov2_vits14", str(folder), rule=SIZE)
    assert torch.equal(
        backbone.vit.layernorm.weight, load_file(folder / "model.safetensors")["layernorm.weight"].float()
    )
    theirs = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    images = torch.randn(1, 3, 56, 84)
    torch.testing.assert_close(
        backbone(images, (11,))[0], features_of(theirs, images, 14), rtol=1e-4, atol=1e-4
    )
