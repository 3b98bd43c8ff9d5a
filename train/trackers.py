"""Where else figures go: TensorBoard files by default, Weights & Biases on request. `metrics.jsonl` is always
written.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from train.config import to_plain
from train.distributed import Ranks
from train.schema import ConfigError, TrainConfig
from train.tensorboard import TensorBoardFile


class WandbRun:
    """A Weights & Biases run; ConfigError if the package is not installed."""

    def __init__(self, config: TrainConfig, run: Path) -> None:
        try:
            wandb = importlib.import_module("wandb")
        except ImportError as error:
            raise ConfigError(
                "log.wandb_project is set but wandb is not installed; pip install wandb, or leave the key out"
            ) from error
        self._run = wandb.init(project=config.log.wandb_project, dir=run, config=to_plain(config))

    def record(self, record: dict[str, Any]) -> None:
        figures = {f"{record['kind']}/{k}": v for k, v in record.items() if k not in ("kind", "step")}
        self._run.log(figures, step=record["step"])

    def close(self) -> None:
        self._run.finish()


Tracker = TensorBoardFile | WandbRun  # takes each line of metrics.jsonl as it is written


def open_trackers(config: TrainConfig, run: Path, ranks: Ranks) -> list[Tracker]:
    """The trackers that `log` asks for; none on ranks other than the first."""
    if not ranks.is_first:
        return []
    trackers: list[Tracker] = []
    if config.log.tensorboard:
        trackers.append(TensorBoardFile(run))
    if config.log.wandb_project is not None:
        trackers.append(WandbRun(config, run))
    return trackers
