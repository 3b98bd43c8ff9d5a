"""The keys of the model: backbone and head."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, StrEnum

from maskshards.train.keys import ConfigError, key
from maskshards.train.model.backbone.architectures import ARCHITECTURES, BACKBONE_PRECISIONS, POSITION_RULES
from maskshards.train.model.heads.rules import (
    FEED_FORWARD,
    HEAD_RULES,
    NUM_QUERIES,
    head_rules,
    num_classes_of,
)


class ModelDtype(Enum):
    """Arithmetic of the model on CUDA, and on a CPU with `cpu_autocast`. Given by name."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


class BackboneLayers(StrEnum):
    """Which blocks of the backbone feed the head. Given by name."""

    LAST = "LAST"
    FOUR_LAST = "FOUR_LAST"
    FOUR_EVEN_INTERVALS = "FOUR_EVEN_INTERVALS"


@dataclass
class ModelConfig:
    """`model`: the frozen backbone."""

    dino_hub: str | None = key(
        None, "architecture by name, for example dinov3_vitl16", one_of=tuple(ARCHITECTURES)
    )
    weights: str | None = key(
        None, 'file, folder, hub id or "random"; null: the published hub id of dino_hub'
    )
    revision: str | None = key(None, "whole commit id of the hub repository, for what comes from there")
    position_rule: str | None = key(
        None,
        "how a dinov2_* without registers resizes positions: as published, or as transformers and older "
        "checkpoints do; null: as the checkpoint was trained, else offset",
        one_of=POSITION_RULES,
    )
    backbone_precision: str | None = key(
        None,
        "of products in the backbone's blocks: as model_dtype (full), or in 8 bits, for features that differ "
        "by some per cent; null: as the checkpoint was trained, else full",
        one_of=BACKBONE_PRECISIONS,
    )
    pretrained_weights: str | None = key(None, "another word for weights (facebookresearch/dinov3's)")
    config_file: str | None = key(None, "refused: dino_hub names the architecture")

    def check(self) -> None:
        """ConfigError unless one backbone is named, in one way."""
        if self.config_file is not None:
            raise ConfigError(
                "model.config_file is not used here; name the architecture by model.dino_hub=dinov3_vitl16"
            )
        if self.dino_hub is None:
            raise ConfigError(
                "model.dino_hub is not set; give a recipe that names the backbone (config=ade20k-vitl), "
                "or name it, for example model.dino_hub=dinov3_vitl16"
            )
        if self.weights is not None and self.pretrained_weights not in (None, self.weights):
            raise ConfigError(
                f"model.weights={self.weights} and model.pretrained_weights={self.pretrained_weights} "
                "name different weights; they are two words for one thing, give one"
            )


@dataclass
class DecoderConfig:
    """`decoder_head`: the trained part."""

    type: str = key("m2f", "kind of head", one_of=tuple(HEAD_RULES))
    backbone_out_layers: BackboneLayers = key(BackboneLayers.LAST, "blocks that feed the head")
    # The next three exist in facebookresearch/dinov3 but nothing reads them there.
    use_batchnorm: bool = key(True, "always True: heads have their norms")
    use_cls_token: bool = key(False, "always False: heads read patches only")
    use_backbone_norm: bool = key(True, "always True: the backbone's last norm is applied")
    num_classes: int | None = key(
        None, "classes; null: as many as the manifest of the shards lists", at_least=1
    )
    hidden_dim: int = key(2048, "width of the head (m2f), a multiple of 32")
    ffn_dim: int = key(FEED_FORWARD, "inner width of the feed-forward layers (m2f)", at_least=1)
    num_queries: int = key(NUM_QUERIES, "masks that the head can name at once (m2f)", at_least=1)
    dropout: float = key(0.1, "share of channels that training drops (linear)", at_least=0, below=1)

    @property
    def classes(self) -> int:
        """The number of classes, once it is known; ConfigError before."""
        return num_classes_of(self)

    def check(self) -> None:
        """ConfigError for a head that cannot be built."""
        for name, only in (("use_batchnorm", True), ("use_cls_token", False), ("use_backbone_norm", True)):
            if getattr(self, name) is not only:
                raise ConfigError(
                    f"decoder_head.{name}={not only} does not exist: the heads are always built with {only}"
                )
        head_rules(self.type).check(self)
