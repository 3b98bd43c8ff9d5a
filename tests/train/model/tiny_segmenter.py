"""A segmenter that computes in milliseconds."""

from types import SimpleNamespace

import torch

from maskshards.train.model.backbone.load import load_backbone
from maskshards.train.model.segmenter import Segmenter, build_segmenter

CPU = torch.device("cpu")


def tiny_segmenter(
    kind: str = "m2f",
    name: str = "dinov3_tiny16",
    *,
    device: torch.device = CPU,
    checkpointing: bool = False,
    num_classes: int = 3,
    num_queries: int = 8,
) -> Segmenter:
    """A random backbone of that name, and a head of width 32 of that kind, on `device`."""
    head = SimpleNamespace(
        type=kind,
        backbone_out_layers="FOUR_LAST",
        num_classes=num_classes,
        hidden_dim=32,
        ffn_dim=64,
        num_queries=num_queries,
        dropout=0.1,
    )
    backbone = load_backbone(name, "random", device=device)
    return build_segmenter(backbone, head, checkpointing=checkpointing).to(device)
