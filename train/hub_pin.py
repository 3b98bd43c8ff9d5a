"""One commit of the hub for a whole run, all its ranks and all its lives.

A branch, or no word at all, means other weights tomorrow. So what it means when a run begins is written into
the run's `config.yaml`, and whoever continues the run, or evaluates its weights, takes that commit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from train.distributed import Ranks
from train.model.architectures import architecture
from train.model.weight_files import commit_of, hub_repository, is_commit
from train.model.weights import RANDOM
from train.schema import TrainConfig

SAME = ("dino_hub", "weights", "pretrained_weights")  # keys of `model` that name the repository


def pinned(config: TrainConfig, ranks: Ranks, earlier: Mapping[str, Any] | None) -> TrainConfig:
    """`config` whose `model.revision` is a whole commit id, if its backbone comes from the hub.

    `earlier`: the configuration, as plain values, of the same run's last life or of a checkpoint, if there is
    any: its commit counts if it names the same weights. Else the first rank asks the hub, for all; a
    WeightsError says that it got no answer.
    """
    model = config.model
    weights = model.weights or model.pretrained_weights
    if weights == RANDOM or is_commit(model.revision):
        return config
    repository = hub_repository(architecture(model.dino_hub or ""), weights)
    if repository is None:
        return config
    commit = remembered(config, earlier)
    if commit is None:
        commit = ranks.from_first(lambda: commit_of(repository, model.revision))
    return replace(config, model=replace(model, revision=commit))


def remembered(config: TrainConfig, earlier: Mapping[str, Any] | None) -> str | None:
    """The commit in `earlier`, if it is one of the weights that `config` names."""
    model = (earlier or {}).get("model")
    if not isinstance(model, Mapping) or any(model.get(key) != getattr(config.model, key) for key in SAME):
        return None
    revision = model.get("revision")
    return revision if isinstance(revision, str) and is_commit(revision) else None


def last_config(run: Path) -> dict[str, Any] | None:
    """`config.yaml` of the run in this folder as plain values; None if there is none that can be read."""
    try:
        content = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError):
        return None
    return content if isinstance(content, dict) else None
