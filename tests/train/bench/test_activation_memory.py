"""Counted memory: by hand for a small chain, in proportion for the real head."""

import pytest
import torch
from torch import nn

from maskshards.train.bench.activation_memory import GIB, Ledger, count_memory
from maskshards.train.config.load import load_config

pytestmark = pytest.mark.usefixtures("shallow")
TINY = [
    "config=configs/config-ade20k-m2f-training.yaml", "datasets.root=synthetic", "output_dir=unused",
    "model.dino_hub=dinov3_tiny16", "model.weights=random", "decoder_head.hidden_dim=32",
    "decoder_head.ffn_dim=32", "decoder_head.num_queries=12", "transforms.train.img_size=64",
    "transforms.train.crop_size=[64,64]",
]  # fmt: skip


def test_a_ledger_counts_every_storage_once_and_no_parameter() -> None:
    layer = nn.Linear(4, 5)
    ledger = Ledger(layer.parameters())
    x = torch.ones(3, 4)
    with torch.autograd.graph.saved_tensors_hooks(ledger.note, lambda tensor: tensor):
        out = layer(x).exp() + layer(x)
    assert out.requires_grad
    assert ledger.total == 4 * (3 * 4 + 3 * 5)  # x, saved by both layers, and the exponential


def test_kept_memory_grows_with_the_batch_and_weights_do_not() -> None:
    two, four, eight = (count_memory(load_config([*TINY, f"bs={size}"])) for size in (2, 4, 8))
    assert two.trained_gib == four.trained_gib
    assert eight.kept_gib - four.kept_gib == pytest.approx(2 * (four.kept_gib - two.kept_gib), rel=0.02)
    assert two.total_gib == two.frozen_gib + two.trained_gib + two.kept_gib


def test_large_backbones_cost_shapes_only() -> None:
    count = count_memory(load_config([*TINY, "bs=1", "model.dino_hub=dinov3_vits16", "model_dtype=BFLOAT16"]))
    assert count.frozen_gib * GIB == pytest.approx(21.6e6 * 2, rel=0.02)  # ViT-S has 21.6 million parameters
