"""What a training or an evaluation left in its folder, read again for people."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from maskshards.shards.storage.foreign_file import read_text
from maskshards.train.checkpoint.run_files import FINAL, LAST, METRICS, RESULTS, STATE, checkpoints_of
from maskshards.train.checkpoint.train_state import TrainState, read_state, strict_json
from maskshards.train.config.plain_values import flat, read_plain
from maskshards.train.config.results import METRICS as MEANS
from maskshards.train.tracking.metrics_log import read_metrics

CONFIG = "config.yaml"


class RunError(ValueError):
    """A folder is no run, or one of its files is none of ours."""


@dataclass(frozen=True)
class PastRun:
    """A run as its files tell it."""

    folder: Path
    config: dict[str, Any]  # dotted key -> value
    records: list[dict[str, Any]] = field(default_factory=list)  # of metrics.jsonl; none in an evaluation
    means: dict[str, float | None] = field(default_factory=dict)  # of the last evaluation, percent
    classes: dict[str, float | None] = field(default_factory=dict)  # IoU by name, percent
    num_images: int | None = None  # of the last evaluation
    state: TrainState | None = None  # of its newest weights


def read_run(folder: Path) -> PastRun:
    """The run in `folder`. RunError or CheckpointError, with the file, for what is none or is damaged."""
    check_run(folder)
    config = read_plain(folder / CONFIG)
    results = folder / f"{RESULTS}.json"
    scores = _scores(results) if results.is_file() else {}
    try:
        classes = {
            one["name"]: None if one["iou"] is None else float(one["iou"])
            for one in scores.get("classes", ())
        }
        means = {
            name: None if scores.get(name) is None else float(scores[name])
            for name in (*MEANS, "boundary_mIoU")
        }
        if not isinstance(scores.get("num_images"), int | None):
            raise ValueError(f"num_images is {scores['num_images']!r:.40}")
    except (TypeError, KeyError, ValueError, AttributeError, OverflowError) as error:
        raise RunError(f"{results} is no result of an evaluation ({error}); evaluate again") from error
    return PastRun(
        folder,
        dict(flat(config)),
        read_metrics(folder / METRICS),
        means,
        classes,
        scores.get("num_images"),
        _state(folder),
    )


def check_run(folder: Path) -> None:
    """RunError unless a run or an evaluation wrote this folder."""
    if not folder.exists():
        raise RunError(f"{folder} does not exist; name the output_dir of a run")
    if not (folder / CONFIG).is_file():
        raise RunError(f"{folder} is no run: there is no {CONFIG} in it; name the output_dir of a run")
    if not (folder / METRICS).is_file() and not (folder / f"{RESULTS}.json").is_file():
        raise RunError(
            f"{folder} has neither {METRICS} nor {RESULTS}.json: nothing was trained or evaluated there yet"
        )


def _state(folder: Path) -> TrainState | None:
    final = (folder / FINAL).with_suffix(".json")
    newest = [path / STATE for path in checkpoints_of(folder, LAST)[-1:]]
    found = [path for path in (final, *newest) if path.is_file()]
    return read_state(found[0]) if found else None


def _scores(path: Path) -> dict[str, Any]:
    try:
        content = strict_json(read_text(path))
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path} cannot be read: {str(error) or type(error).__name__}") from error
    if not isinstance(content, dict):
        raise RunError(f"{path} holds a {type(content).__name__}, expected keys and values")
    return content
