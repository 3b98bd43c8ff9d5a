"""Where a run starts: fresh, from other weights, or at the sample after its last finished step."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import torch

from maskshards.shards.order.order import ORDER_VERSION
from maskshards.train.checkpoint.checkpoint import (
    CheckpointError,
    TrainState,
    check_digest,
    load_weights,
    read_checkpoint,
    read_part,
    read_state,
)
from maskshards.train.checkpoint.other_classes import load_by_class
from maskshards.train.checkpoint.retention import set_aside
from maskshards.train.checkpoint.run_files import (
    AVERAGE,
    BEST,
    LAST,
    OPTIMIZER,
    STATE,
    WEIGHTS,
    checkpoints_of,
    newest_in,
    step_of,
)
from maskshards.train.checkpoint.train_state import NewerCheckpointError
from maskshards.train.config.load import ConfigError, flatten, to_plain
from maskshards.train.config.schema import TrainConfig
from maskshards.train.distributed.ranks import Ranks
from maskshards.train.evaluation.provenance import check_classes, trained_rule, warn_of_another_rule
from maskshards.train.model.backbone.architectures import trained_precision
from maskshards.train.optim.optimizer import load_optimizer_tensors
from maskshards.train.trainer.build import Parts

logger = logging.getLogger(__name__)

FREE_TO_CHANGE = (
    "output_dir",
    "init_from",
    "resume_from",
    "load_from",
    "num_workers",
    "bs",
    "n_gpus",
    "global_batch",
    "model.backbone_precision",  # what it means is compared by `check_same_run`
)
NEW_SHARDS = "no setting of datasets is another, so the shards are, as after a new build"
SCORING = (  # settings under which another score comes out for the same weights
    "metric_to_save", "eval.mode", "eval.crop_size", "eval.stride", "eval.use_tta", "eval.max_val_samples",
    "transforms.eval.img_size", "transforms.eval.tta_ratios",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Start:
    """Where a run begins."""

    step: int  # optimiser steps already taken
    best_score: float | None  # None: no evaluation counted yet
    order: str | None = None  # the data order's word after them; None: it counts from here on


def begin(config: TrainConfig, ranks: Ranks, parts: Parts, run: Path) -> Start:
    """Bring weights and optimiser to where the run starts, and say where that is.

    Raises CheckpointError for checkpoints that are damaged or of another model, ConfigError where continuing
    would change what the run is.
    """
    chosen = choose_checkpoint(config, ranks, run)
    if chosen is not None:
        start = continue_from(chosen, config, parts, run)
        ranks.wait(f"the weights of {chosen}")  # all have looked at what there is before names change
        ranks.from_first(lambda: set_damaged_aside(run, start.step))
        return start
    if config.init_from is not None:
        checkpoint = read_checkpoint(config.init_from)
        told = load_by_class(parts.segmenter.decoder, checkpoint, parts.train_split.manifest.classes)
        if told:
            logger.warning("%s", told)
        warn_of_another_rule(checkpoint.state, parts.segmenter.backbone, str(checkpoint.path))
        if parts.average is not None:
            parts.average.restart()
        logger.info("weights from %s; the schedule starts anew", checkpoint.path)
    return Start(0, None)


def choose_checkpoint(config: TrainConfig, ranks: Ranks, run: Path) -> Path | None:
    """The checkpoint to continue from, decided by the first rank for all; None for a fresh start.

    A folder that holds a run goes on from its newest checkpoint, and is never taken back to an earlier one or
    mixed with another run.
    """

    def choose() -> Path | None:
        if config.resume_from == "auto":
            return newest_whole_or_none(run)
        path = None if config.resume_from is None else newest_in(Path(config.resume_from))
        own = checkpoints_of(run, LAST)
        if own and path != own[-1].resolve():
            raise ConfigError(
                f"output_dir {run} already holds a run; say resume_from=auto to continue it after step "
                f"{step_of(own[-1])}, or name another folder (also to go on from an earlier checkpoint: "
                "output_dir=NEW resume_from=PATH)"
            )
        return path

    return ranks.from_first(choose)


def set_damaged_aside(run: Path, step: int) -> None:
    """Let nothing that the run saved above `step`, where it goes on, count as its newest or best."""
    for path in set_aside(run, step):
        logger.warning("%s does not lead to step %d: set aside, delete it when nobody needs it", path, step)
        if BEST in path.name:
            logger.warning("the best up to step %d is not kept; the next evaluation counts as the best", step)


def newest_whole_or_none(run: Path) -> Path | None:
    """The newest whole checkpoint; None for a folder without checkpoints.

    CheckpointError where there are some and none can be read, since starting anew would overwrite the run.
    """
    newest = newest_whole(run)
    if newest is None and (found := checkpoints_of(run, LAST)):
        raise CheckpointError(
            f"{found[-1].parent}: none of its {len(found)} checkpoints can be continued (the reasons stand "
            "above); delete them to start anew, name another output_dir, or start from weights with init_from"
        )
    return newest


def newest_whole(run: Path) -> Path | None:
    """The newest checkpoint whose files are what its state says.

    Damaged newer ones are reported and passed over. NewerCheckpointError for one of a newer program: it is no
    damage, and going on below it would throw the steps up to it away.
    """
    for folder in reversed(checkpoints_of(run, LAST)):
        try:
            state = read_state(folder / STATE)
            if state.step != step_of(folder) or not {WEIGHTS, OPTIMIZER} <= state.digests.keys():
                raise CheckpointError(
                    f"{folder / STATE} is damaged: it is of step {state.step} and speaks of "
                    f"{', '.join(state.digests) or 'no file'}"
                )
            for part, digest in state.digests.items():
                check_digest(folder / part, digest)
        except NewerCheckpointError:
            raise
        except CheckpointError as error:
            logger.warning("passing over a damaged checkpoint: %s", error)
            continue
        return folder
    return None


def continue_from(folder: Path, config: TrainConfig, parts: Parts, run: Path) -> Start:
    """Bring back weights, optimiser and average of the checkpoint in `folder`."""
    checkpoint = read_checkpoint(folder)
    state = checkpoint.state
    if state is None or folder.is_file():
        raise CheckpointError(
            f"{folder} holds weights only; resume_from needs a {LAST}* folder (init_from takes weights)"
        )
    check_same_run(state, config, parts, folder)
    load_weights(parts.segmenter.decoder, checkpoint)
    load_optimizer_tensors(parts.segmenter.decoder, parts.optimizer, read_part(folder, OPTIMIZER, state))
    if parts.average is not None and AVERAGE in state.digests:
        parts.average.load(read_part(folder, AVERAGE, state))
    elif parts.average is not None:
        parts.average.restart()
    for key, (before, now) in changed_settings(state, config).items():
        logger.warning("%s was %s when %s was saved and is %s now", key, before, folder.name, now)
    logger.info("continuing after step %d from %s", state.step, folder)
    if state.order is None:
        logger.warning(
            "%s knows no order: `order` in metrics.jsonl counts from step %d on, and compares with runs that "
            "were continued from here alike",
            folder,
            state.step,
        )
    best = best_score(run, state.step, config, parts.val_split.manifest.fingerprint)
    return Start(state.step, best, state.order)


def check_same_run(state: TrainState, config: TrainConfig, parts: Parts, folder: Path) -> None:
    """Continuing must mean the same samples through the same model.

    ConfigError names the first thing that differs.
    """
    check_classes(state.class_names, parts.train_split.manifest, str(folder))
    backbone = parts.segmenter.backbone
    pairs = {
        "the training data's fingerprint": (state.fingerprint, parts.selection.fingerprint),
        "the version of the data order": (state.order_version, ORDER_VERSION),
        "seed": (state.seed, config.seed),
        "the global batch": (state.global_batch, config.images_per_step),
        "model.dino_hub": (state.backbone, config.model.dino_hub),
        "the backbone's weights digest": (state.backbone_digest, backbone.digest),
        "model.position_rule": (trained_rule(state), backbone.position_rule),
        "model.backbone_precision": (trained_precision(state.config.get("model", {})), backbone.precision),
    }
    for name, (saved, now) in pairs.items():
        if saved != now:
            raise ConfigError(
                f"{folder} cannot be continued: {name} was {saved} and is {now} now"
                f"{why_other(name, state, config)}; give the run's own settings, or start a new run with "
                "init_from"
            )
    if state.step > config.scheduler.total_iter:
        raise ConfigError(
            f"{folder} cannot be continued: it has {state.step} steps, and scheduler.total_iter is "
            f"{config.scheduler.total_iter}; raise it, or go on from an earlier checkpoint in another folder"
        )


def why_other(name: str, state: TrainState, config: TrainConfig) -> str:
    """The settings that may make the training data another, in words; empty for all else that differs."""
    if "fingerprint" not in name:
        return ""
    changed = {k: pair for k, pair in changed_settings(state, config).items() if k.startswith("datasets.")}
    told = ", ".join(f"{key} was {before} and is {now}" for key, (before, now) in changed.items())
    return f" ({told or NEW_SHARDS})"


def changed_settings(state: TrainState, config: TrainConfig) -> dict[str, tuple[object, object]]:
    """Settings that differ from the saved ones and shape the result: (saved, now) by dotted key."""
    saved, now = dict(leaves(state.config)), dict(leaves(to_plain(config)))
    keys = [key for key in now if key in saved and saved[key] != now[key] and key not in FREE_TO_CHANGE]
    return {key: (saved[key], now[key]) for key in keys}


def leaves(content: dict[str, Any]) -> list[tuple[str, Any]]:
    return [(key, reduce(lambda at, part: at[part], key.split("."), content)) for key in flatten(content)]


def best_score(run: Path, step: int, config: TrainConfig, val_fingerprint: str | None = None) -> float | None:
    """The score of the best checkpoint written at or before `step`; None if it does not compare.

    It does not where it was taken by another metric or in another way than `config` says, or on another
    validation split than that of `val_fingerprint`, which is told.
    """
    for folder in reversed(checkpoints_of(run, BEST)):
        try:
            state = read_state(folder / STATE)
        except CheckpointError as error:
            logger.warning("passing over a damaged checkpoint: %s", error)
            continue
        if state.step <= step:
            others = scored_otherwise(state, config, val_fingerprint)
            for what, (before, now) in others.items():
                logger.warning(
                    "%s was %s when %s scored %s and is %s now: scores of the two do not compare, and the "
                    "next evaluation counts as the best",
                    *(what, before, folder.name, state.score, now),
                )
            return None if others else state.score
    return None


def scored_otherwise(
    state: TrainState, config: TrainConfig, val_fingerprint: str | None
) -> dict[str, tuple[object, object]]:
    """What makes the score in `state` one that does not compare with those to come: (then, now) by name."""
    others = {key: pair for key, pair in changed_settings(state, config).items() if key in SCORING}
    before = state.val_fingerprint
    if before is not None and val_fingerprint is not None and before != val_fingerprint:
        others["the validation split"] = before[:16], val_fingerprint[:16]
    return others


def state_of(
    config: TrainConfig, parts: Parts, step: int, score: float | None, order: str | None = None
) -> TrainState:
    """The facts of this run after `step` steps, as a checkpoint holds them."""
    manifest, backbone = parts.train_split.manifest, parts.segmenter.backbone
    plain = to_plain(config)
    plain["model"] |= {
        "position_rule": backbone.position_rule, "backbone_precision": backbone.precision,
    }  # fmt: skip
    return TrainState(
        step=step,
        position=step * config.images_per_step,
        fingerprint=parts.selection.fingerprint,
        global_batch=config.images_per_step,
        seed=config.seed,
        order_version=ORDER_VERSION,
        backbone=config.model.dino_hub or "",
        backbone_digest=backbone.digest,
        class_names=list(manifest.classes),
        config=plain,
        score=score,
        order=order,
        dataset=manifest.dataset,
        label_rule=dict(manifest.label_rule),
        val_fingerprint=parts.val_split.manifest.fingerprint,
    )


def weights_of(parts: Parts) -> dict[str, torch.Tensor]:
    """Trainables and their buffers under the reference's key names; never the backbone."""
    return dict(parts.segmenter.decoder.state_dict())
