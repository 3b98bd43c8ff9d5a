"""`maskshards.train(config, **overrides)`: a training from a script or a notebook.

What takes time to import is imported when training starts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from maskshards.train.predictor import Predictor


@dataclass(frozen=True)
class TrainResult:
    """What a run left behind."""

    folder: Path  # all its files
    summary: str  # one line for people
    scores: dict[str, Any] = field(default_factory=dict, repr=False)  # of the last evaluation, percent

    @property
    def miou(self) -> float | None:
        """Mean IoU of the last evaluation, percent; None before the first."""
        score = self.scores.get("mIoU")
        return None if score is None else float(score)

    @property
    def weights(self) -> Path:
        """The trained weights under the published key names."""
        return self.folder / "model_final.pth"

    def model(self, device: str | None = None) -> Predictor:
        """The trained model: the best checkpoint of the run."""
        from maskshards.train.predictor import load_model

        return load_model(self.folder, device=device)


def train(config: str | Path | Mapping[str, Any] | None = None, **overrides: Any) -> TrainResult:
    """Run what `maskshards train` would run, in this process, to its end.

    `config`: a recipe by path or name, or its keys as a dictionary. `overrides`: more keys, sections as
    dictionaries (`scheduler={"total_iter": 100}`) or dotted (`**{"scheduler.total_iter": 100}`). Raises
    ValueErrors that say what to change, NonFiniteError and GuardError where training must stop, and
    KeyboardInterrupt, after saving, for Ctrl-C. `resume_from="auto"` goes on.
    """
    from maskshards.shards.storage.foreign_file import read_text
    from maskshards.train.config.load import load_config
    from maskshards.train.distributed.early_stop import Stopped
    from maskshards.train.distributed.ranks import joined_for
    from maskshards.train.distributed.stop_signals import StopSignals
    from maskshards.train.evaluation.results import STEM
    from maskshards.train.trainer.run import run

    words = words_of(config, overrides)
    settings = load_config(words)
    try:
        with StopSignals(joining=True) as stop, joined_for(settings) as ranks, stop.noted():
            summary = run(settings, ranks, stop, words)
    except Stopped as stopped:
        way_on = "; resume_from='auto' continues" if stopped.begun else ""
        raise KeyboardInterrupt(f"{stopped}{way_on}") from stopped
    folder = Path(settings.output_dir or "")
    results = folder / f"{STEM}.json"
    return TrainResult(folder, summary, json.loads(read_text(results)) if results.is_file() else {})


def words_of(config: str | Path | Mapping[str, Any] | None, overrides: Mapping[str, Any]) -> list[str]:
    """The words of a command line that say the same."""
    from maskshards.train.config.plain_values import flat

    if not isinstance(config, str | Path | Mapping | None):
        kind = type(config).__name__
        raise ValueError(f"config is a {kind}, expected a recipe's name or path, or a dictionary of its keys")
    words = [f"config={config}"] if isinstance(config, str | Path) else []
    keys = [*(flat(config) if isinstance(config, Mapping) else []), *flat(overrides)]
    return words + [f"{key}={as_word(value, key)}" for key, value in keys]


def as_word(value: Any, key: str = "value") -> str:
    """A value as it is written on a command line; numbers of numpy and torch count as numbers.

    ValueError for what has no such form.
    """
    if isinstance(value, str | Path):
        return str(value)
    if isinstance(value, Enum):
        return value.name
    try:
        return json.dumps(value.tolist() if hasattr(value, "tolist") else value)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{key} is a {type(value).__name__}, expected a number, text, a list of them, True, False or None"
        ) from error
