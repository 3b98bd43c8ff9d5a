"""What a finished run leaves, made in a moment: a linear head with random weights and the facts beside it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from maskshards.train.checkpoint.checkpoint import TrainState, save_final
from maskshards.train.config.load import to_plain
from maskshards.train.config.schema import BackboneLayers, TrainConfig
from maskshards.train.model.segmenter import Segmenter
from maskshards.train.trainer.build import build_model

NAMES = ["sky", "sea", "<sand>", "tür"]


def small_config(kind: str = "linear", names: list[str] = NAMES) -> TrainConfig:
    """The configuration of the run."""
    config = TrainConfig()
    config.model.dino_hub, config.model.weights = "dinov3_tiny16", "random"
    config.datasets.root = "/nowhere/at/all"
    config.decoder_head.type, config.decoder_head.num_classes = kind, len(names)
    if kind == "m2f":
        head = config.decoder_head
        head.backbone_out_layers = BackboneLayers.FOUR_EVEN_INTERVALS
        head.hidden_dim, head.ffn_dim, head.num_queries = 32, 64, 10
    config.transforms.eval.img_size = 48
    config.eval.crop_size, config.eval.stride = 48, 32
    return config


def trained(config: TrainConfig, names: list[str] = NAMES, **facts: Any) -> tuple[Segmenter, TrainState]:
    """A segmenter whose classifier says something, and what its run knows; `facts` replace fields."""
    segmenter = build_model(config, torch.device("cpu"))
    with torch.no_grad():
        classifier_of(segmenter).weight.normal_(generator=torch.Generator().manual_seed(0))
    state = TrainState(
        step=1,
        position=2,
        fingerprint="f",
        global_batch=2,
        seed=0,
        backbone=config.model.dino_hub or "",
        backbone_digest=segmenter.backbone.digest,
        class_names=list(names),
        config=to_plain(config),
        score=61.25,
        dataset="beach",
        label_rule={"num_classes": len(names), "ignore_index": 255, "reduce_zero_label": True},
        val_fingerprint="v",
    )
    return segmenter, replace(state, **facts)


def classifier_of(segmenter: Segmenter) -> nn.Module:
    """The layer whose outputs are the classes."""
    head = segmenter.decoder.segmentation_model[1]
    return head.conv if segmenter.decoder.rules.name == "linear" else head.predictor.class_embed


def save_run(
    folder: Path,
    kind: str = "linear",
    names: list[str] = NAMES,
    config: TrainConfig | None = None,
    **facts: Any,
) -> Path:
    """`folder` with model_final.pth and model_final.json, of `trained`."""
    segmenter, state = trained(config or small_config(kind, names), names, **facts)
    folder.mkdir(parents=True, exist_ok=True)
    save_final(folder, state, segmenter.decoder.state_dict())
    return folder / "model_final.pth"


def photo(height: int = 50, width: int = 70, seed: int = 0) -> np.ndarray:
    """(H, W, 3) uint8 with soft blobs, so that labels differ within it."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
