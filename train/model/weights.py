"""Frozen weights for a backbone."""

from __future__ import annotations

import torch
from torch import nn
from transformers import (
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
)

from train.model.architectures import DINOV2, DINOV2_REGISTERS, DINOV3, Architecture, architecture
from train.model.backbone import FrozenBackbone

RANDOM_SEED = 0
FAMILIES = {
    DINOV3: (DINOv3ViTConfig, DINOv3ViTModel),
    DINOV2: (Dinov2Config, Dinov2Model),
    DINOV2_REGISTERS: (Dinov2WithRegistersConfig, Dinov2WithRegistersModel),
}


def load_backbone(
    name: str,
    weights: str | None,
    revision: str | None = None,
    *,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
) -> FrozenBackbone:
    arch = architecture(name)
    return FrozenBackbone(_random_vit(arch).to(device), arch, f"random:{RANDOM_SEED}")


def _random_vit(arch: Architecture) -> nn.Module:
    config, model = FAMILIES[arch.family]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM_SEED)
        return model(config(**arch.settings))
