"""One process's share of a run: what the loop, the evaluations and the reports all hold in their hands."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from maskshards.train.checkpoint.checkpoint import TrainState
from maskshards.train.config.schema import TrainConfig
from maskshards.train.distributed.ranks import Ranks
from maskshards.train.distributed.stop_signals import StopSignals
from maskshards.train.evaluation.metrics import EvalResult
from maskshards.train.tracking.metrics_log import MetricsFile
from maskshards.train.tracking.progress import ProgressLine
from maskshards.train.tracking.trackers import Tracker
from maskshards.train.trainer.build import Parts
from maskshards.train.trainer.instruments import Instruments
from maskshards.train.trainer.resume import state_of


@dataclass
class Session:
    """A run under way. Only `best_score`, `result` and what `watch` counts change."""

    config: TrainConfig
    ranks: Ranks
    parts: Parts
    run: Path  # the output folder
    metrics: MetricsFile
    progress: ProgressLine
    watch: Instruments
    stop: StopSignals
    best_score: float | None  # None: no evaluation counted yet
    trackers: list[Tracker] = field(default_factory=list)
    result: EvalResult | None = None  # of the newest evaluation

    def record(self, kind: str, step: int, **figures: Any) -> None:
        """One line of figures, to metrics.jsonl and to every tracker."""
        record = self.metrics.write(kind, step, **figures)
        for tracker in self.trackers:
            tracker.record(record)

    def has_evaluated(self, step: int) -> bool:
        """Whether metrics.jsonl has an evaluation of this step, as the first rank sees it."""
        return self.ranks.from_first(lambda: self.metrics.has("eval", step))

    def state(self, step: int) -> TrainState:
        """The facts of the run after `step` optimiser steps."""
        return state_of(self.config, self.parts, step, self.best_score, self.watch.order.word)
