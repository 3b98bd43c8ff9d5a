"""One commit of the hub for all lives of a run and for what follows it.

Nothing comes from the hub without a commit (`weight_files`). Whoever continues a run in its folder
or evaluates its weights need not repeat it: it stands in the run's `config.yaml` and in every checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from maskshards.train.config.schema import TrainConfig
from maskshards.train.distributed.ranks import Ranks

SAME = ("dino_hub", "weights", "pretrained_weights")  # keys of `model` that name the repository


def with_commit(config: TrainConfig, earlier: Mapping[str, Any] | None) -> TrainConfig:
    """`config`, and if its `model.revision` is not given that of `earlier`, a configuration as plain values,
    where both name the same weights.
    """
    model = (earlier or {}).get("model")
    if config.model.revision is not None or not isinstance(model, Mapping):
        return config
    revision = model.get("revision")
    if not isinstance(revision, str) or any(model.get(key) != getattr(config.model, key) for key in SAME):
        return config
    return replace(config, model=replace(config.model, revision=revision))


def with_last_commit(config: TrainConfig, run: Path, ranks: Ranks) -> TrainConfig:
    """The same from `config.yaml` of the run in this folder, which the first rank reads for all."""

    def look() -> str:
        return with_commit(config, last_config(run)).model.revision or ""

    return replace(config, model=replace(config.model, revision=ranks.from_first(look) or None))


def last_config(run: Path) -> dict[str, Any] | None:
    """`config.yaml` of a run as plain values; None if there is none that can be read."""
    try:
        content = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError):
        return None
    return content if isinstance(content, dict) else None
