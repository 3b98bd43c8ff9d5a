"""One commit of the hub, and one rule for positions, for all lives of a run and for what follows it.

Nothing comes from the hub without a commit (`weight_files`); the first start of a run looks up the newest
one. A head is used with the backbone that it was trained on. Whoever continues a run, in its folder or in
another, or evaluates its weights need not repeat either: they stand in the run's `config.yaml` and in every
checkpoint.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from maskshards.train.checkpoint.run_files import STATE, newest_in
from maskshards.train.checkpoint.train_state import CheckpointError, read_state
from maskshards.train.config.load import WRITTEN
from maskshards.train.config.model import ModelConfig
from maskshards.train.config.plain_values import read_plain
from maskshards.train.config.schema import ConfigError, TrainConfig
from maskshards.train.distributed.ranks import Ranks
from maskshards.train.model.backbone.architectures import (
    FULL,
    position_rule,
    trained_position_rule,
    trained_precision,
)
from maskshards.train.model.backbone.hub_commit import WHOLE, hub_id_of, newest_commit

logger = logging.getLogger(__name__)

SAME = ("dino_hub", "weights", "pretrained_weights")  # keys of `model` that name the repository


def with_commit(config: TrainConfig, earlier: Mapping[str, Any] | None) -> TrainConfig:
    """`config`, and if its `model.revision` is not given that of `earlier`, for the same weights.

    `earlier` is a configuration as plain values. Where it names other weights, `config` stays as it is.
    """
    model = (earlier or {}).get("model")
    if config.model.revision is not None or not isinstance(model, Mapping):
        return config
    revision = model.get("revision")
    if not isinstance(revision, str) or any(model.get(key) != getattr(config.model, key) for key in SAME):
        return config
    return replace(config, model=replace(config.model, revision=revision))


def with_rule(config: TrainConfig, earlier: Mapping[str, Any] | None) -> TrainConfig:
    """`config` with `model.position_rule` and `model.backbone_precision`, which stay where they are given.

    Else they are those of `earlier`, if both name the same backbone, else the defaults. Configurations older
    than the keys mean `size` and `full`.
    """
    name, rule, precision = (
        config.model.dino_hub or "", config.model.position_rule, config.model.backbone_precision,
    )  # fmt: skip
    model = (earlier or {}).get("model")
    if isinstance(model, Mapping) and model.get("dino_hub") == name:
        rule = rule or trained_position_rule(model)
        precision = precision or trained_precision(model)
    rules = {"position_rule": position_rule(name, rule), "backbone_precision": precision or FULL}
    return replace(config, model=replace(config.model, **rules))


def like_last_run(config: TrainConfig, run: Path, ranks: Ranks) -> TrainConfig:
    """Both from the run that goes on in this folder, as the first rank reads it for all."""

    def look() -> dict[str, str | None]:
        last = earlier_config(config, run)
        model = with_rule(with_commit(config, last), last).model
        return {
            "revision": commit_of(model), "position_rule": model.position_rule,
            "backbone_precision": model.backbone_precision,
        }  # fmt: skip

    return replace(config, model=replace(config.model, **ranks.from_first(look)))


def commit_of(model: ModelConfig) -> str | None:
    """The whole commit at which the backbone is fetched, looked up now if none is known.

    None where nothing comes from the hub. ModelError where it cannot be told.
    """
    weights = model.weights or model.pretrained_weights
    hub_id = hub_id_of(model.dino_hub or "", weights)
    if hub_id is None or (model.revision is not None and WHOLE.fullmatch(model.revision)):
        return model.revision
    commit = newest_commit(hub_id, model.revision)
    logger.info("the backbone is %s at commit %s; config.yaml keeps it", hub_id, commit)
    return commit


def earlier_config(config: TrainConfig, run: Path) -> dict[str, Any] | None:
    """The configuration, as plain values, of the run that goes on in the folder `run`.

    It is that of the checkpoint that `resume_from` names, else `config.yaml` there. None for a fresh start,
    and where it cannot be read.
    """
    if config.resume_from in (None, "auto"):
        return last_config(run)
    try:
        return read_state(newest_in(Path(config.resume_from)) / STATE).config
    except CheckpointError:
        return None  # `begin` reads it too, and says what is wrong


def last_config(run: Path) -> dict[str, Any] | None:
    """`config.yaml` of a run as plain values; None if there is none that can be read."""
    try:
        return read_plain(run / WRITTEN)
    except (OSError, ConfigError):
        return None
