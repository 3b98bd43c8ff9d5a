"""What `state.json` says about the weights beside it, with a checksum of its own.

The digests in it vouch for the files of tensors; the checksum vouches for the digests, the step and all else,
so that a changed number cannot make a run continue somewhere else in silence.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from maskshards.shards.storage.foreign_file import read_text

VERSION = 1
CHECKSUM = "checksum"  # key of the file; older versions wrote none


class CheckpointError(ValueError):
    """A checkpoint is missing, damaged, or belongs to another model or another run."""


class NewerCheckpointError(CheckpointError):
    """A checkpoint is whole, and of a newer program than this one."""


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
    dataset: str | None = None  # name in the training manifest; of older versions, as the next two, None
    label_rule: dict[str, Any] | None = None  # of the training manifest: what values in label files mean
    val_fingerprint: str | None = None  # of the split that `score` was taken on
    version: int = VERSION


def state_json(state: TrainState, digests: dict[str, str]) -> bytes:
    """The file's content: the facts, the digests of the files that it speaks of, and a checksum over all."""
    facts = asdict(state) | {"digests": digests}
    return json.dumps(facts | {CHECKSUM: checksum(facts)}, indent=1, allow_nan=False).encode()


def checksum(facts: dict[str, Any]) -> str:
    """sha256 of the facts as JSON in one spelling."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, allow_nan=False).encode()).hexdigest()


def read_state(path: Path) -> TrainState:
    """The facts in a state file. CheckpointError if it is missing, damaged, or of a newer program."""
    try:
        facts = strict_json(read_text(path))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {str(error) or type(error).__name__}") from error
    version = facts.get("version") if isinstance(facts, dict) else None
    if type(version) is int and version > VERSION:
        raise NewerCheckpointError(
            f"{path} was written by a newer maskshards: it has version {version}, this program reads "
            f"{VERSION}; use the maskshards that wrote it, or a newer one"
        )
    if version != VERSION:
        raise CheckpointError(f"{path} is not the state of a checkpoint of version {VERSION}")
    recorded = facts.pop(CHECKSUM, None)
    if recorded is not None and recorded != checksum(facts):
        raise CheckpointError(
            f"{path} is damaged: its facts are not those that its checksum was taken of. Get a good copy; "
            "settings and class names are changed on the command line, not in this file"
        )
    known = {name: facts[name] for name in TrainState.__dataclass_fields__ if name in facts}
    try:
        state = TrainState(**known)
    except TypeError as error:
        raise CheckpointError(f"{path} is incomplete: {error}") from error
    check_types(state, path)
    return state


def strict_json(text: str) -> Any:
    """The value of a text of JSON.

    ValueError for what JSON does not say for certain (a key twice, NaN, numbers beyond any float), and
    RecursionError.
    """
    return json.loads(text, object_pairs_hook=no_key_twice, parse_constant=no_json, parse_float=finite_float)


def no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON; ValueError for a key that stands twice: which one counts would be a guess."""
    content: dict[str, Any] = {}
    for key, value in pairs:
        if key in content:
            raise ValueError(f"the key {key[:80]!r} stands in it twice")
        content[key] = value
    return content


def no_json(word: str) -> float:
    """ValueError for NaN and Infinity, which Python's own reader takes."""
    raise ValueError(f"{word} is no JSON")


def finite_float(word: str) -> float:
    """ValueError for 1e999, which would be infinity."""
    number = float(word)
    return number if math.isfinite(number) else no_json(word)


def check_types(state: TrainState, path: Path) -> None:
    """CheckpointError for the first fact that is none of its kind: old files have no checksum to notice."""
    count = ("step", "position", "global_batch")
    sound = {name: _is_count(getattr(state, name)) for name in count}
    sound["seed"] = _is_count(state.seed, 1 << 64)
    sound |= {name: isinstance(getattr(state, name), str) for name in ("backbone", "backbone_digest")}
    sound["class_names"] = _all_text(state.class_names)
    sound["config"] = isinstance(state.config, dict)
    sound["score"] = state.score is None or type(state.score) in (int, float)
    sound["label_rule"] = state.label_rule is None or _is_rule(state.label_rule)
    sound["order_version"] = _is_count(state.order_version)
    texts = ("order", "dataset", "val_fingerprint")
    sound |= {name: isinstance(getattr(state, name), str | None) for name in texts}
    sound["fingerprint"] = isinstance(state.fingerprint, str)
    digests = state.digests
    sound["digests"] = isinstance(digests, dict) and _all_text([*digests, *digests.values()])
    # Names of files beside this one: any other would have a stranger's state read where it pleases.
    sound["digests"] = sound["digests"] and all(Path(name).name == name for name in digests)
    wrong = [name for name, is_sound in sound.items() if not is_sound]
    if wrong:
        shown = repr(getattr(state, wrong[0]))[:80]
        raise CheckpointError(f"{path} is damaged: its {wrong[0]} is {shown}; get a good copy")


def _is_count(value: object, below: int = 1 << 63) -> bool:
    return type(value) is int and 0 <= value < below


def _is_rule(rule: object) -> bool:
    """Whether a value has the form of a manifest's label rule; what it says is its readers' matter."""
    if not isinstance(rule, dict):
        return False
    mapping = rule.get("mapping")
    if mapping is None:
        return True
    numbers = isinstance(mapping, dict) and all(
        re.fullmatch("[0-9]{1,5}", value) and int(value) < 1 << 16 for value in mapping
    )
    return numbers and all(label is None or _is_count(label, 1 << 16) for label in mapping.values())


def _all_text(values: object) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)
