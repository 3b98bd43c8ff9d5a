"""Which entries of a file are the backbone's, where training scripts left more than that.

A self-supervised run saves student, teacher and their heads; wrappers of PyTorch's put words into names. The
backbone is found by its patch embedding: what stands before that name stands before all of its entries.
"""

from __future__ import annotations

import re

from maskshards.train.model.backbone.architectures import ModelError

# Put into names by torch.compile, FSDP, activation checkpointing and DistributedDataParallel.
_INSERTED = re.compile(r"(?<![^.])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|module)\.")
_ANCHOR = re.compile(
    r"^(?P<prefix>(?:.*\.)?)(?:patch_embed\.proj|embeddings\.patch_embeddings(?:\.projection)?)\.weight$"
)
_HEADS = ("head.", "dino_head.", "ibot_head.", "linear_head.", "classifier.", "lm_head.")
_PREFERRED = ("teacher", "ema")  # of several backbones in one file, what such runs evaluate


class WrapperError(ModelError):
    """A file holds several backbones, and none of them is called the teacher."""


def backbone_names(names: list[str], where: str) -> dict[str, str]:
    """Name in the file -> plain name, for the backbone's entries; heads and other networks are left out.

    Names stay as they are where no patch embedding is found: loading then lists what it misses.
    """
    plain = {name: _INSERTED.sub("", name) for name in names}
    anchors = (_ANCHOR.match(name) for name in plain.values())
    prefix = _choose(sorted({match["prefix"] for match in anchors if match}), where)
    inside = {name: found.removeprefix(prefix) for name, found in plain.items() if found.startswith(prefix)}
    return {name: found for name, found in inside.items() if not found.startswith(_HEADS)}


def _choose(prefixes: list[str], where: str) -> str:
    if len(prefixes) <= 1:
        return prefixes[0] if prefixes else ""
    for word in _PREFERRED:
        named = [prefix for prefix in prefixes if word in prefix]
        if len(named) == 1:
            return named[0]
    raise WrapperError(
        f"{where}: holds {len(prefixes)} backbones, under {', '.join(map(repr, prefixes))}; save the one "
        "that is meant in a file of its own"
    )
