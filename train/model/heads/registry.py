"""The heads by the name that `decoder_head.type` gives them."""

from __future__ import annotations

from types import MappingProxyType

from maskshards.train.model.heads.head import Head
from maskshards.train.model.heads.linear import Linear
from maskshards.train.model.heads.mask2former import Mask2Former
from maskshards.train.model.heads.rules import head_rules

HEADS: MappingProxyType[str, Head] = MappingProxyType(
    {head.rules.name: head for head in (Mask2Former(), Linear())}
)


def head_called(name: str) -> Head:
    """The head of that name; ConfigError, with what there is, for another."""
    return HEADS[head_rules(name).name]
