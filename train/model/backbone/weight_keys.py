"""Names of backbone parameters: Meta's files, Hugging Face files of any age and the installed transformers.

All are translated to one canonical spelling, that of transformers 5.23's modules without the leading
`model.`, so that a file of any origin can be matched against a model of any release. Fused projections are
split on the way.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

import torch
from torch import Tensor

from maskshards.train.model.backbone.architectures import DINOV3, Architecture

Named = tuple[str, Tensor]

_WRAPPERS = re.compile(r"^(?:module\.|backbone\.|dinov2\.|dinov2_with_registers\.|dinov3_vit\.)+")
_HUB_WORDS = (
    (re.compile(r"^model\.layer\."), "layer."),
    (re.compile(r"\.attention\.attention\.query\."), ".attention.q_proj."),
    (re.compile(r"\.attention\.attention\.key\."), ".attention.k_proj."),
    (re.compile(r"\.attention\.attention\.value\."), ".attention.v_proj."),
    (re.compile(r"\.attention\.output\.dense\."), ".attention.o_proj."),
    (re.compile(r"\.mlp\.weights_out\."), ".mlp.down_proj."),
)
_META_BLOCK = re.compile(r"^blocks\.(?:\d+\.)?(\d+)\.([a-z].*)$")  # block_chunks puts one number more
_TIMM_BLOCK = {
    "gamma_1": "ls1.gamma",
    "gamma_2": "ls2.gamma",
    "attn.q_bias": "attn.q.bias",
    "attn.v_bias": "attn.v.bias",
}
_META_SKIPPED = (
    "rope_embed.periods",
    "local_cls_norm.weight",
    "local_cls_norm.bias",
)  # derived, or not read here


def is_meta_style(names: list[str]) -> bool:
    """Whether a file's keys are those of Meta's own repositories."""
    return any(_META_BLOCK.match(_WRAPPERS.sub("", name)) for name in names)


def canonical_name(name: str) -> str:
    """The canonical spelling of one Hugging Face key."""
    name = _WRAPPERS.sub("", name)
    for pattern, word in _HUB_WORDS:
        name = pattern.sub(word, name)
    return name


def from_hub(name: str, tensor: Tensor) -> Iterator[Named]:
    """Canonical parameters behind one entry of a Hugging Face file."""
    canonical = canonical_name(name)
    if ".mlp.weights_in." in canonical:  # SwiGLU's two input projections in one matrix
        for part, word in zip(tensor.chunk(2), ("gate_proj", "up_proj"), strict=True):
            yield canonical.replace("weights_in", word), part
    else:
        yield canonical, tensor


def from_meta(name: str, tensor: Tensor, family: str, gated: bool = False) -> Iterator[Named]:
    """Canonical parameters behind one entry of a file in Meta's or timm's spelling.

    A key of no known spelling of DINOv3 or DINOv2 stays as it is.
    """
    name = _WRAPPERS.sub("", name)
    block = _META_BLOCK.match(name)
    if block:
        yield from _from_block(int(block[1]), block[2], tensor, family, gated)
    elif name == "pos_embed" and family != DINOV3 and _is_square(tensor):
        # timm adds the class token's position to the token itself: its own is nothing then.
        yield _top_name(name, family), torch.cat([torch.zeros_like(tensor[:, :1]), tensor], dim=1)
    elif name not in _META_SKIPPED:
        yield _top_name(name, family), tensor.unsqueeze(1) if _needs_axis(name, tensor, family) else tensor


def needs_bias(names: list[str], arch: Architecture) -> bool:
    """Whether a file in timm's spelling leaves out the projections' biases, which are zero then."""
    is_timm = any(name.endswith(".gamma_1") for name in names)
    has_bias = any(name.endswith(("qkv.bias", "q_bias")) for name in names)
    return is_timm and not has_bias and bool(arch.settings.get("query_bias"))


def zero_biases(name: str, weight: Tensor) -> Iterator[Named]:
    """The biases of queries and values beside a fused projection of DINOv3's, (3 D, D)."""
    for word in "qv":
        yield f"layer.{name.split('.')[-4]}.attention.{word}_proj.bias", torch.zeros(len(weight) // 3)


def _is_square(positions: Tensor) -> bool:
    count = positions.shape[1] if positions.dim() == 3 else 0
    return count > 1 and math.isqrt(count) ** 2 == count


def _needs_axis(name: str, tensor: Tensor, family: str) -> bool:
    return name == "mask_token" and family == DINOV3 and tensor.dim() == 2


def _top_name(name: str, family: str) -> str:
    is_v3 = family == DINOV3
    first, _, last = name.rpartition(".")
    groups = {
        "patch_embed.proj": "embeddings.patch_embeddings"
        if is_v3
        else "embeddings.patch_embeddings.projection",
        "norm": "norm" if is_v3 else "layernorm",
    }
    if first in groups:
        return f"{groups[first]}.{last}"
    tokens = {"pos_embed": "position_embeddings", "storage_tokens": "register_tokens"}
    tokens["reg_token"] = "register_tokens"
    if name in ("cls_token", "mask_token", "register_tokens", *tokens):
        return f"embeddings.{tokens.get(name, name)}"
    return name


def _from_block(number: int, rest: str, tensor: Tensor, family: str, gated: bool) -> Iterator[Named]:
    is_v3 = family == DINOV3
    prefix = f"{'layer' if is_v3 else 'encoder.layer'}.{number}."
    rest = _TIMM_BLOCK.get(rest, rest)
    first, _, last = rest.rpartition(".")
    if first in ("attn.q", "attn.v"):
        yield f"{prefix}attention.{first[-1]}_proj.bias", tensor
    elif first == "attn.qkv":
        if last == "bias_mask":
            return
        for word, part in zip("qkv", tensor.chunk(3), strict=True):
            if not (is_v3 and word == "k" and last == "bias"):  # DINOv3 masks the key bias away
                yield f"{prefix}attention.{word}_proj.{last}", part
    elif first == "mlp.w12" or (first == "mlp.fc1" and gated):
        for word, part in zip(("gate", "up"), tensor.chunk(2), strict=True):
            yield f"{prefix}mlp.{word}_proj.{last}", part
    else:
        words = {"attn.proj": "attention.o_proj", "mlp.w1": "mlp.gate_proj", "mlp.w2": "mlp.up_proj"}
        words |= {"mlp.w3": "mlp.down_proj", "ls1": "layer_scale1", "ls2": "layer_scale2"}
        if gated:
            words |= {"mlp.fc1_g": "mlp.gate_proj", "mlp.fc1_x": "mlp.up_proj", "mlp.fc2": "mlp.down_proj"}
        elif is_v3:
            words |= {"mlp.fc1": "mlp.up_proj", "mlp.fc2": "mlp.down_proj"}
        yield f"{prefix}{words.get(first, first)}.{'lambda1' if last == 'gamma' else last}", tensor
