"""The frozen backbones by name: what each one is made of and where it is published.

Sizes are those of the DINOv3 (facebookresearch/dinov3) and DINOv2 (facebookresearch/dinov2) model zoos; names
are the ones their torch.hub entries use. The two `tiny` ones are ours, for tests and demonstrations: nobody
published weights for them, so they exist only with random ones.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

DINOV3, DINOV2, DINOV2_REGISTERS = (
    "dinov3_vit",
    "dinov2",
    "dinov2_with_registers",
)  # transformers' model types
NUM_REGISTERS = 4
# How the learned positions of DINOv2 without registers are resized to another grid. OFFSET is the published
# code's rule, SIZE is transformers' and the one that checkpoints were trained under that name no rule.
OFFSET, SIZE = "offset", "size"
POSITION_RULES = (OFFSET, SIZE)
# Of the products in the blocks: as model_dtype says, or in 8 bits.
FULL, FP8 = "full", "fp8"
BACKBONE_PRECISIONS = (FULL, FP8)


class ModelError(ValueError):
    """A model that was asked for cannot be built, or cannot take the input it was given."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """One backbone. `settings` are the arguments of the transformers configuration class of `family`."""

    name: str
    family: str
    hub_id: str | None  # repository on the Hugging Face hub; None: not published there
    settings: dict[str, Any] = field(repr=False)

    @property
    def embed_dim(self) -> int:
        return int(self.settings["hidden_size"])

    @property
    def num_blocks(self) -> int:
        return int(self.settings["num_hidden_layers"])

    @property
    def patch_px(self) -> int:
        return int(self.settings["patch_size"])

    @property
    def position_rules(self) -> tuple[str, ...]:
        """Rules by which its positions can be resized, the default first; () where there is no choice."""
        return POSITION_RULES if self.family == DINOV2 else ()

    @property
    def gated(self) -> bool:
        """Whether the feed-forward layers are SwiGLU."""
        return bool(self.settings.get("use_gated_mlp") or self.settings.get("use_swiglu_ffn"))


def _dinov3(
    name: str,
    width: int,
    depth: int,
    heads: int,
    hidden: int,
    gated: bool,
    published: bool = True,
    qkv_bias: bool = True,
) -> Architecture:
    settings = {
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "intermediate_size": hidden,
        "use_gated_mlp": gated,
        "hidden_act": "silu" if gated else "gelu",
        "query_bias": qkv_bias,
        "key_bias": False,
        "value_bias": qkv_bias,
        "num_register_tokens": NUM_REGISTERS,
        "patch_size": 16,
        "layer_norm_eps": 1e-5,
        "rope_theta": 100.0,
    }
    hub_id = f"facebook/{name.replace('_', '-')}-pretrain-lvd1689m" if published else None
    return Architecture(name, DINOV3, hub_id, settings)


def _dinov2(
    name: str, size: str, width: int, depth: int, heads: int, gated: bool, registers: bool
) -> Architecture:
    settings: dict[str, Any] = {
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "mlp_ratio": 4,
        "use_swiglu_ffn": gated,
        "patch_size": 14,
        "image_size": 518,
        "layer_norm_eps": 1e-6,
    }
    if registers:
        settings["num_register_tokens"] = NUM_REGISTERS
    family = DINOV2_REGISTERS if registers else DINOV2
    hub_id = f"facebook/dinov2-{'with-registers-' if registers else ''}{size}" if size else None
    return Architecture(name + ("_reg" if registers else ""), family, hub_id, settings)


def _all() -> dict[str, Architecture]:
    rows = [
        _dinov3("dinov3_vits16", 384, 12, 6, 1536, False),
        _dinov3("dinov3_vits16plus", 384, 12, 6, 1536, True),
        _dinov3("dinov3_vitb16", 768, 12, 12, 3072, False),
        _dinov3("dinov3_vitl16", 1024, 24, 16, 4096, False),
        _dinov3("dinov3_vitl16plus", 1024, 24, 16, 4096, True, published=False),
        _dinov3("dinov3_vith16plus", 1280, 32, 20, 5120, True),
        _dinov3("dinov3_vit7b16", 4096, 40, 32, 8192, True, qkv_bias=False),
        _dinov3("dinov3_tiny16", 64, 4, 4, 256, False, published=False),
        _dinov2("dinov2_tiny14", "", 64, 4, 4, False, False),
    ]
    for registers in (False, True):
        rows += [
            _dinov2("dinov2_vits14", "small", 384, 12, 6, False, registers),
            _dinov2("dinov2_vitb14", "base", 768, 12, 12, False, registers),
            _dinov2("dinov2_vitl14", "large", 1024, 24, 16, False, registers),
            _dinov2("dinov2_vitg14", "giant", 1536, 40, 24, True, registers),
        ]
    return {row.name: row for row in rows}


ARCHITECTURES = MappingProxyType(_all())


def architecture(name: str) -> Architecture:
    """The backbone called `name`. ModelError, with the nearest name, where there is none."""
    if name in ARCHITECTURES:
        return ARCHITECTURES[name]
    close = difflib.get_close_matches(name, list(ARCHITECTURES), n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise ModelError(f"model.dino_hub={name!r}: no such backbone; {hint}known are {', '.join(ARCHITECTURES)}")


def position_rule(name: str, rule: str | None = None) -> str | None:
    """The rule that backbone `name` resizes positions by: `rule`, or its default; None where it has none.

    ModelError for a rule that it does not know.
    """
    known = architecture(name).position_rules
    if rule is not None and rule not in known:
        has = f"expected {' or '.join(known)}" if known else f"{name} has one rule only, leave the key out"
        raise ModelError(f"model.position_rule={rule!r}: {has}")
    return rule or next(iter(known), None)


def trained_position_rule(model: Mapping[str, Any]) -> str | None:
    """The rule that a checkpoint was trained under, from the `model` section of its configuration.

    SIZE where the section is older than the key; None for a backbone without a choice.
    """
    name = str(model.get("dino_hub"))
    if name not in ARCHITECTURES or not ARCHITECTURES[name].position_rules:
        return None
    return position_rule(name, model.get("position_rule") or SIZE)


def trained_precision(model: Mapping[str, Any]) -> str:
    """The precision of products under which a checkpoint was trained.

    From the `model` section of its configuration; FULL where the section is older than the key.
    """
    found = model.get("backbone_precision")
    return found if found in BACKBONE_PRECISIONS else FULL


LAYER_WORDS = ("LAST", "FOUR_LAST", "FOUR_EVEN_INTERVALS")


def num_layers(backbone_out_layers: str) -> int:
    """How many blocks one of LAYER_WORDS (or an enum of that name) names, in a backbone of any depth."""
    return len(layer_indices(backbone_out_layers, num_blocks=12))


def layer_indices(backbone_out_layers: str, num_blocks: int) -> tuple[int, ...]:
    """0-based blocks behind the reference's words LAST, FOUR_LAST and FOUR_EVEN_INTERVALS.

    Even intervals are every (num_blocks // 4)-th block, except that a depth of 24 takes block 4 where the
    rule says 5: published heads were trained on that set.
    """
    name = str(getattr(backbone_out_layers, "name", backbone_out_layers))
    if name == "LAST":
        return (num_blocks - 1,)
    if name == "FOUR_LAST":
        return tuple(range(num_blocks - 4, num_blocks))
    if name == "FOUR_EVEN_INTERVALS":
        return (4, 11, 17, 23) if num_blocks == 24 else tuple(i * (num_blocks // 4) - 1 for i in range(1, 5))
    raise ModelError(
        f"decoder_head.backbone_out_layers={name!r}: expected LAST, FOUR_LAST or FOUR_EVEN_INTERVALS"
    )
