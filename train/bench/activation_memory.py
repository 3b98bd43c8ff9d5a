"""How much device memory a training step holds, counted without a device.

The head runs forward on tensors that have shapes but no values, while every tensor that autograd keeps
for the backward pass is counted once. Added to weights, gradients and AdamW's two moments that is what
must fit; not counted are the loss (see docs/benchmarks/train.md), scratch memory of single operations
and fragmentation.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from maskshards.train.config.schema import TrainConfig
from maskshards.train.model.backbone.load import RANDOM, load_backbone
from maskshards.train.model.segmenter import Segmenter
from maskshards.train.trainer.build import autocast_dtype, on_backbone

GIB = 2**30
TRAINED_BYTES = 16  # of a float32 parameter: itself, its gradient, two moments


@dataclass(frozen=True, slots=True)
class MemoryCount:
    """Bytes held at the end of the forward pass and the start of the backward pass, in GiB."""

    frozen_gib: float  # backbone weights
    trained_gib: float  # head weights, gradients, optimiser moments
    kept_gib: float  # activations kept for the backward pass, and weights cast to 16 bits

    @property
    def total_gib(self) -> float:
        return self.frozen_gib + self.trained_gib + self.kept_gib


def count_memory(config: TrainConfig) -> MemoryCount:
    """The count for one micro-step of `config.bs` crops of `transforms.train.crop_size`.

    The head's weights are really made (2.8 GB of host memory at width 2048); everything else has shapes only.
    """
    low = autocast_dtype(config, torch.device("cuda")) or torch.float32
    backbone = load_backbone(config.model.dino_hub or "", RANDOM, dtype=low, device="meta")
    segmenter = on_backbone(backbone, config)
    segmenter.decoder.train()
    return MemoryCount(
        frozen_gib=sum(p.numel() * p.element_size() for p in backbone.parameters()) / GIB,
        trained_gib=sum(p.numel() for p in segmenter.decoder.parameters()) * TRAINED_BYTES / GIB,
        kept_gib=kept_bytes(segmenter, config, low) / GIB,
    )


def kept_bytes(segmenter: Segmenter, config: TrainConfig, low: torch.dtype) -> int:
    """Bytes of all storages that the head's forward pass keeps, its parameters left out."""
    height, width = config.transforms.train.crop_size or (512, 512)
    patch_px, channels = segmenter.backbone.patch_px, segmenter.backbone.embed_dim
    with FakeTensorMode(allow_non_fake_inputs=True):
        images = torch.empty(config.bs, 3, height, width)
        maps = [
            torch.empty(config.bs, channels, height // patch_px, width // patch_px, dtype=low)
            for _ in segmenter.indices
        ]
        ledger = Ledger(segmenter.decoder.parameters())
        autocast = torch.autocast("cpu", low, enabled=low is not torch.float32)
        with torch.autograd.graph.saved_tensors_hooks(ledger.note, lambda tensor: tensor), autocast:
            answer = segmenter.decoder(images, tuple(maps))
        assert answer is not None  # keeps the graph alive until the count is done
        return ledger.total


class Ledger:
    """Adds up storages, each once, except those of `known` tensors."""

    def __init__(self, known: Iterable[nn.Parameter]) -> None:
        self._known = {parameter.untyped_storage()._cdata for parameter in known}
        self._seen: dict[int, torch.UntypedStorage] = {}

    def note(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._known:
            self._seen[storage._cdata] = storage
        return tensor

    @property
    def total(self) -> int:
        return sum(storage.nbytes() for storage in self._seen.values())
