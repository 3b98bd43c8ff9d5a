"""What is fixed about each kind of head, known without loading torch.

The configuration is checked against these rules before anything heavy is imported, and the model is built
under the same ones, so the two cannot disagree.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol

from maskshards.train.keys import ConfigError
from maskshards.train.model.backbone.architectures import num_layers

NORM_GROUPS = 32  # of the pixel decoder, whose width divides by them
FEED_FORWARD = 4096  # inner width of the feed-forward layers in published heads, whatever the hidden width
PRECISIONS = MIXED, REFERENCE = "mixed", "reference"  # of the pixel decoder
NUM_QUERIES = 100  # of published heads


class HeadSettings(Protocol):
    """The fields of `decoder_head` in the configuration that shape the head."""

    type: str  # a key of HEAD_RULES
    backbone_out_layers: Any  # a word (or an enum of that name) that layer_indices knows
    num_classes: int | None  # None until it is known from the data
    dropout: float  # linear only
    hidden_dim: int  # this and the rest: m2f only
    ffn_dim: int
    num_queries: int


def num_classes_of(settings: HeadSettings) -> int:
    """Classes of a head that is to be built. ConfigError where neither words nor data have said."""
    if settings.num_classes is None:
        raise ConfigError("decoder_head.num_classes is not set; say how many classes the head has")
    return settings.num_classes


@dataclass(frozen=True)
class HeadRules:
    """What one kind of head asks of its input and its settings."""

    name: str
    num_maps: int | None  # blocks of the backbone that it reads; None: any number
    coarsest_stride_px: int  # of the maps that it makes of the image; 1 where it makes none
    has_width: bool  # whether `hidden_dim` shapes it
    scores_are_shares: bool  # whether its scores are bounded, as sums of probabilities are
    decoder: str  # name of the class of its trained part
    title: str  # of a model card
    tags: tuple[str, ...] = ()  # of a model card
    records: bool = False  # whether its step can be recorded as CUDA graphs

    def size_multiple(self, patch_px: int) -> int:
        """What both sides of an input must divide by, px."""
        return math.lcm(patch_px, self.coarsest_stride_px)

    def check(self, settings: HeadSettings) -> None:
        """ConfigError where `decoder_head` asks for what this head cannot be."""
        found = num_layers(settings.backbone_out_layers)
        if self.num_maps not in (None, found):
            raise ConfigError(
                f"decoder_head.type={self.name} reads {self.num_maps} blocks of the backbone, but "
                f"decoder_head.backbone_out_layers={_word(settings.backbone_out_layers)} gives {found}: "
                "say FOUR_EVEN_INTERVALS or FOUR_LAST"
            )
        width = settings.hidden_dim
        if self.has_width and (width < NORM_GROUPS or width % NORM_GROUPS):
            raise ConfigError(
                f"decoder_head.hidden_dim is {width}, expected a multiple of {NORM_GROUPS}, "
                "for example 256 or 2048"
            )


def _word(layers: Any) -> str:
    return str(getattr(layers, "name", layers))


HEAD_RULES = MappingProxyType(
    {
        rules.name: rules
        for rules in (
            HeadRules(
                "m2f", num_maps=4, coarsest_stride_px=32, has_width=True, scores_are_shares=True,
                decoder="MaskDecoder",
                title="Mask2Former head with a ViT adapter", tags=("mask2former",), records=True,
            ),
            HeadRules(
                "linear", num_maps=None, coarsest_stride_px=1, has_width=False, scores_are_shares=False,
                decoder="LinearDecoder",
                title="Linear head",
            ),
        )
    }
)  # fmt: skip


def head_rules(name: str) -> HeadRules:
    """The rules of the head called `name`; ConfigError, with what there is, for another name."""
    if name not in HEAD_RULES:
        raise ConfigError(f"decoder_head.type is {name!r}, expected one of {', '.join(HEAD_RULES)}")
    return HEAD_RULES[name]
