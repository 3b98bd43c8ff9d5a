"""What `state.json` says about the weights beside it, with a checksum of its own.

The digests in it vouch for the files of tensors; the checksum vouches for the digests, the step and all else,
so that a changed number cannot make a run continue somewhere else in silence.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

VERSION = 1
CHECKSUM = "checksum"  # key of the file; older versions wrote none


class CheckpointError(ValueError):
    """A checkpoint is missing, damaged, or belongs to another model or another run."""


@dataclass(frozen=True)
class TrainState:
    """The facts of a run after `step` steps."""

    step: int  # optimiser steps taken
    position: int  # samples consumed by those steps: where the loader continues
    fingerprint: str  # of the training data
    global_batch: int
    seed: int
    backbone: str  # architecture name
    backbone_digest: str
    class_names: list[str]
    config: dict[str, Any]  # the whole merged config, JSON-ready
    order_version: int = 1  # of maskshards.shards.order.order, which deals the samples
    order: str | None = (
        None  # of all samples read so far (maskshards.train.tracking.data_order); older versions wrote none
    )
    score: float | None = None  # of the metric that picks the best; None before the first evaluation
    digests: dict[str, str] = field(default_factory=dict)  # sha256 of the other files, filled in when written
    version: int = VERSION


def state_json(state: TrainState, digests: dict[str, str], *, checked: bool = True) -> bytes:
    """The file's content: the facts, with the digests of the files that it speaks of. Not `checked`: people
    may write into it.
    """
    facts = asdict(state) | {"digests": digests}
    return json.dumps(
        facts | ({CHECKSUM: checksum(facts)} if checked else {}), indent=1, allow_nan=False
    ).encode()


def checksum(facts: dict[str, Any]) -> str:
    """sha256 of the facts as JSON in one spelling."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, allow_nan=False).encode()).hexdigest()


def read_state(path: Path) -> TrainState:
    """The facts in a state file; CheckpointError if it is missing, damaged or not of this version."""
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(facts, dict) or facts.get("version") != VERSION:
        raise CheckpointError(f"{path} is not the state of a checkpoint of version {VERSION}")
    recorded = facts.pop(CHECKSUM, None)
    if recorded is not None and recorded != checksum(facts):
        raise CheckpointError(f"{path} is damaged: its facts are not those that its checksum was taken of")
    known = {name: facts[name] for name in TrainState.__dataclass_fields__ if name in facts}
    try:
        state = TrainState(**known)
    except TypeError as error:
        raise CheckpointError(f"{path} is incomplete: {error}") from error
    if not isinstance(state.step, int) or not isinstance(state.digests, dict):
        raise CheckpointError(f"{path} is damaged: step {state.step!r}, digests {state.digests!r}")
    return state
