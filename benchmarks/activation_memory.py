"""Count, without a GPU, what a training step of the head must hold: python
benchmarks/activation_memory.py

Tensors have shapes but no data (torch's fake tensors), so a 7B backbone can be counted on a laptop. Added up
are the distinct tensors that autograd keeps for the backward pass under bfloat16 autocast, with the types and
layouts that CUDA's rules give (see maskshards.train.bench.cuda_rules) and the fused deformable attention (it
keeps its inputs only), for one and for two images: the difference is the cost of an image, the rest are
bfloat16 copies of the weights.
Weights, gradients and AdamW's two moments are 16 bytes a trainable parameter, the frozen backbone 2 bytes.
Temporaries of the backward pass, the loss and the allocator's slack come on top, so the true peak is higher.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from maskshards.train.bench.cuda_rules import CudaRules
from maskshards.train.config.schema import DecoderConfig
from maskshards.train.model.backbone.architectures import architecture
from maskshards.train.model.backbone.load import load_backbone
from maskshards.train.model.heads.mask2former import MaskDecoder
from maskshards.train.model.ops import deformable_attention

CASES = [
    ("dinov3_vits16", 256),
    ("dinov3_vitb16", 256),
    ("dinov3_vitl16", 256),
    ("dinov3_vitl16", 1024),
    ("dinov3_vitl16", 2048),
    ("dinov3_vit7b16", 2048),
]
CROP_PX = 512
BATCHES = (1, 2, 8, 16)


class KeepsInputs(torch.autograd.Function):
    """Stands for the fused deformable attention: its output's shape, and what it saves."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(value, locations, weights)
        return value.new_empty(value.shape[0], locations.shape[1], value.shape[2] * value.shape[3])


@dataclass(frozen=True)
class Count:
    """Bytes that one case holds."""

    state: int  # weights, gradients, moments; the backbone
    fixed: int  # kept for the backward pass whatever the batch
    image: int  # kept for the backward pass for each image

    def at(self, batch: int) -> float:
        """GB for a batch."""
        return (self.state + self.fixed + batch * self.image) / 1e9


def kept_bytes(decoder: nn.Module, width: int, batch: int) -> int:
    """Bytes of distinct tensors, other than parameters, that autograd keeps for one forward pass."""
    parameters = {p.untyped_storage()._cdata for p in decoder.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in parameters:
            kept.setdefault(storage._cdata, tensor)
        return tensor

    images = torch.empty(batch, 3, CROP_PX, CROP_PX)
    features = tuple(torch.empty(batch, width, CROP_PX // 16, CROP_PX // 16) for _ in range(4))
    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t)
    with hooks, torch.autocast("cpu", torch.bfloat16), CudaRules():
        decoder(images, features)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def count(name: str, hidden_dim: int) -> Count:
    """The bytes of one backbone and hidden width."""
    width = architecture(name).embed_dim
    backbone = load_backbone(name, "random", device="meta").vit
    with FakeTensorMode():
        decoder = MaskDecoder(width, DecoderConfig(hidden_dim=hidden_dim), "mixed")
        one, two = (kept_bytes(decoder, width, batch) for batch in (1, 2))
    trained = sum(p.numel() for p in decoder.parameters())
    frozen = sum(p.numel() for p in backbone.parameters())
    return Count(16 * trained + 2 * frozen, 2 * one - two, two - one)


def main() -> None:
    """Print the table as markdown, in GB."""
    nn.init.trunc_normal_ = nn.init.normal_  # the real one looks at values, and there are none
    deformable_attention.kernels_fit = lambda value: True
    deformable_attention.deformable_attention_kernel = lambda v, s, p, w: KeepsInputs.apply(v, p, w)
    lines = [["backbone, hidden width", "state", "fixed", "an image", *(f"B={batch}" for batch in BATCHES)]]
    lines.append(["---"] * len(lines[0]))
    for name, hidden_dim in CASES:
        row = count(name, hidden_dim)
        parts = [f"{row.state / 1e9:.1f}", f"{row.fixed / 1e9:.2f}", f"{row.image / 1e9:.2f}"]
        lines.append([f"{name}, {hidden_dim}", *parts, *(f"{row.at(batch):.1f}" for batch in BATCHES)])
    sys.stdout.writelines(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    main()
