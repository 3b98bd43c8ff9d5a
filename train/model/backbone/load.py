"""Fills a backbone of transformers with frozen weights: `load_backbone` is the door.

The model is made without memory (meta device) and filled entry by entry, each moved to its device and type
before the next is read. Loading is strict: a parameter without an entry, an entry without a parameter or a
wrong shape is an error that lists them. Random weights are made only when `random` is written.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
)

from maskshards.train.model.backbone.architectures import (
    ARCHITECTURES,
    DINOV2,
    DINOV2_REGISTERS,
    DINOV3,
    FULL,
    Architecture,
    ModelError,
    architecture,
)
from maskshards.train.model.backbone.frozen import FrozenBackbone
from maskshards.train.model.backbone.weight_files import WeightsError, find_weights, read_config, read_entries
from maskshards.train.model.backbone.weight_keys import (
    Named,
    canonical_name,
    from_hub,
    from_meta,
    is_meta_style,
    needs_bias,
    zero_biases,
)
from maskshards.train.model.backbone.weight_wrappers import backbone_names

RANDOM = "random"
RANDOM_SEED = 0
FAMILIES: dict[str, tuple[Any, Any]] = {
    DINOV3: (DINOv3ViTConfig, DINOv3ViTModel),
    DINOV2: (Dinov2Config, Dinov2Model),
    DINOV2_REGISTERS: (Dinov2WithRegistersConfig, Dinov2WithRegistersModel),
}
OPTIONAL = ("embeddings.mask_token",)  # pretraining only; many files lack it
IDENTITY = ("hidden_size", "num_hidden_layers", "num_attention_heads", "patch_size")  # told apart by these
GATES = ("use_gated_mlp", "use_swiglu_ffn")  # and by these, which count as false where they are absent
MATRIX_DTYPES = (torch.float32, torch.bfloat16)
TRAINING_ONLY = ("pos_embed_shift", "pos_embed_jitter", "pos_embed_rescale")  # would make features random
SHOWN = 5  # keys of each kind that an error lists


def load_backbone(
    name: str,
    weights: str | None,
    revision: str | None = None,
    *,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    rule: str | None = None,
    precision: str = FULL,
) -> FrozenBackbone:
    """The backbone `name` (see ARCHITECTURES) with frozen weights.

    `weights`: a .pth of Meta's, a safetensors file, a Hugging Face folder or hub id, `random`, or None for
    the published hub id at `revision`. `dtype` bfloat16 keeps the blocks' matrices in it, `rule` is that of
    positions (see FrozenBackbone). On device "meta" with `random`, only shapes are made. WeightsError or
    ModelError for what cannot be.
    """
    arch, place = architecture(name), torch.device(device)
    dtype = dtype or torch.float32
    if dtype not in MATRIX_DTYPES:
        raise ModelError(f"backbone weights in {dtype}: expected float32 or bfloat16")
    path = None if weights == RANDOM else find_weights(arch, weights, revision)
    if path is not None and place.type == "meta":
        raise ModelError("the meta device holds no weights: pass model.weights=random with it")
    vit = _empty(arch, path)
    if path is None:
        fill(vit, _random_entries(vit, place.type == "meta"), RANDOM, matrix_dtype=dtype, device=place)
        digest = f"{RANDOM}:{RANDOM_SEED}"
    else:
        digest = fill(vit, _translated(path, arch), str(path), matrix_dtype=dtype, device=place)
    _remake_buffers(vit, place)
    return FrozenBackbone(vit, arch, digest, dtype, rule, precision)


def _empty(arch: Architecture, path: Path | None) -> Any:
    """The model without memory: as the configuration in folder `path` shapes it, else as the architecture."""
    config_class, model_class = FAMILIES[arch.family]
    folder = path if path is not None and path.is_dir() else None
    settings = arch.settings if folder is None else _checked_config(arch, folder)
    try:
        config = config_class(**settings) if folder is None else config_class.from_dict(settings)
        for word in TRAINING_ONLY:
            setattr(config, word, None)
        with torch.device("meta"):
            return model_class(config)
    except Exception as error:  # transformers raises many kinds for values that it cannot take
        if folder is None:
            raise
        reason = (
            f"{type(error).__name__}: {str(error).strip().splitlines()[-1] if str(error).strip() else ''}"
        )
        raise WeightsError(
            f"{folder / 'config.json'}: no {arch.name} can be made of it ({reason[:300]}); get a good copy"
        ) from error


def fill(
    model: nn.Module, entries: Iterator[Named], where: str, *, matrix_dtype: torch.dtype, device: torch.device
) -> str:
    """Gives every parameter of `model` its entry; returns the sha256 over names, shapes and values as read.

    Entries bear canonical names. Linear layers take `matrix_dtype`, all else float32. `where` names the
    source.
    """
    targets = {canonical_name(name): name for name in model.state_dict()}
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    filled: dict[str, str] = {}
    unexpected: list[str] = []
    misshapen: dict[str, str] = {}
    for name, tensor in entries:
        target = targets.get(name)
        if target is None:
            unexpected.append(name)
        elif tuple(tensor.shape) != shapes[target]:
            misshapen[name] = f"{name} is {tuple(tensor.shape)}, expected {shapes[target]}"
        else:
            _place(model, target, tensor, matrix_dtype, device)
            filled[name] = _entry_digest(tensor) if where != RANDOM else ""
    found = {*filled, *misshapen, *OPTIONAL}
    missing = [name for name in targets if name not in found]
    wrong = {"wrong shape": [*misshapen.values()], "missing": missing, "unexpected": unexpected}
    if any(wrong.values()):
        raise WeightsError(
            f"{where}: not the weights of this model.{listed(wrong)}\nPass the weights that belong to "
            "model.dino_hub, or the model.dino_hub that belongs to the weights"
        )
    for name in OPTIONAL:
        if name in targets and name not in filled:
            _place(model, targets[name], torch.zeros(shapes[targets[name]]), matrix_dtype, device)
    whole = hashlib.sha256()
    for name in sorted(filled):
        whole.update(f"{name} {shapes[targets[name]]} {filled[name]}\n".encode())
    return whole.hexdigest()


def listed(wrong: dict[str, list[str]]) -> str:
    """One line for each kind of wrong key that has any: how many, and the first few."""
    lines = []
    for kind, names in wrong.items():
        if names:
            more = f", and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            lines.append(f"\n  {kind} ({len(names)}): {', '.join(names[:SHOWN])}{more}")
    return "".join(lines)


def _place(
    model: nn.Module, target: str, tensor: Tensor, matrix_dtype: torch.dtype, device: torch.device
) -> None:
    path, _, name = target.rpartition(".")
    owner = model.get_submodule(path)
    dtype = matrix_dtype if isinstance(owner, nn.Linear) else torch.float32
    # A copy always: entries may be views into a mapped file, which can change or vanish under a long run.
    setattr(owner, name, nn.Parameter(tensor.to(device, dtype, copy=True), requires_grad=False))


def _entry_digest(tensor: Tensor) -> str:
    data = tensor.detach().contiguous().flatten().view(torch.uint8)
    return f"{tensor.dtype} {hashlib.sha256(data.numpy().data).hexdigest()}"


def _remake_buffers(vit: Any, device: torch.device) -> None:
    """Rotary periods are derived, never stored, and were made without memory: make them again."""
    if hasattr(vit, "rope_embeddings"):
        vit.rope_embeddings = type(vit.rope_embeddings)(vit.config).to(device)


def _translated(path: Path, arch: Architecture) -> Iterator[Named]:
    names, entries = read_entries(path)
    plain = backbone_names(names, str(path))
    meta = is_meta_style(list(plain.values()))
    unbiased = meta and needs_bias(list(plain.values()), arch)
    for name, tensor in entries:
        if name in plain:
            known = plain[name]
            yield from from_meta(known, tensor, arch.family, arch.gated) if meta else from_hub(known, tensor)
            if unbiased and known.endswith("attn.qkv.weight"):
                yield from zero_biases(known, tensor)


def _random_entries(vit: nn.Module, shapes_only: bool) -> Iterator[Named]:
    """Transformers' own initialisation, each parameter from its own generator: no order matters."""
    for name, like in vit.state_dict().items():
        canonical = canonical_name(name)
        if shapes_only:
            value = like
        elif canonical.endswith(("norm.weight", "norm1.weight", "norm2.weight", "lambda1")):
            value = torch.ones(like.shape)
        elif canonical.endswith(("bias", "mask_token")):
            value = torch.zeros(like.shape)
        else:
            generator = torch.Generator().manual_seed(RANDOM_SEED << 32 | zlib.crc32(canonical.encode()))
            value = nn.init.trunc_normal_(torch.empty(like.shape), std=0.02, generator=generator)
        yield canonical, value


def _checked_config(arch: Architecture, folder: Path) -> dict[str, Any]:
    config = read_config(folder)
    found, expected = _identity(str(config.get("model_type")), config), _identity(arch.family, arch.settings)
    wrong = [
        f"{key} {found[key]!r} (expected {expected[key]!r})"
        for key in expected
        if found[key] != expected[key]
    ]
    if wrong:
        fits = [o.name for o in ARCHITECTURES.values() if _identity(o.family, o.settings) == found]
        hint = f"; model.dino_hub={fits[0]} would fit" if fits else ""
        raise WeightsError(f"{folder / 'config.json'}: not {arch.name}: {', '.join(wrong)}{hint}")
    return config


def _identity(family: str, settings: dict[str, Any]) -> dict[str, Any]:
    gated = any(settings.get(key) for key in GATES)
    return {"model_type": family} | {key: settings.get(key) for key in IDENTITY} | {"gated": gated}
