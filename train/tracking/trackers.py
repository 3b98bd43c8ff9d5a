"""Where else figures go: TensorBoard files by default, Weights & Biases on request.

`metrics.jsonl` is always written.

A run that is continued goes on in the same boards. Steps that are taken again replace their former selves in
TensorBoard; Weights & Biases refuses steps that go backwards, so there `step` is a figure of its own, which
all others are drawn over, and a step taken twice is drawn twice.
"""

from __future__ import annotations

import importlib
import re
import uuid
from pathlib import Path
from typing import Any

from maskshards.shards.storage.atomic_write import replacing
from maskshards.shards.storage.foreign_file import read_text
from maskshards.train.config.load import to_plain
from maskshards.train.config.schema import ConfigError, TrainConfig
from maskshards.train.distributed.ranks import Ranks
from maskshards.train.tracking.tensorboard import TensorBoardFile

WANDB_ID = "wandb_id.txt"  # in a run's folder: which Weights & Biases run it is
VALID_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
AXIS = "step"


class WandbRun:
    """A Weights & Biases run, the same one whenever the folder's run is continued.

    ConfigError if the package is not installed, does not let us in, or the folder's id is none.
    """

    def __init__(self, config: TrainConfig, run: Path) -> None:
        wandb = import_wandb()
        try:
            self._run = wandb.init(
                project=config.log.wandb_project,
                name=run.name,
                id=wandb_id(run),
                resume="allow",
                dir=run,
                config=to_plain(config),
            )
        except wandb.Error as error:
            raise ConfigError(
                f"log.wandb_project: Weights & Biases said: {error}; run `wandb login`, set "
                "WANDB_MODE=offline, or leave the key out"
            ) from error
        self._run.define_metric(AXIS)
        self._run.define_metric("*", step_metric=AXIS)

    def record(self, record: dict[str, Any]) -> None:
        """Log one line of metrics.jsonl, its step among its figures."""
        figures = {f"{record['kind']}/{k}": v for k, v in record.items() if k not in ("kind", "step")}
        self._run.log({AXIS: record["step"], **figures})

    def close(self) -> None:
        self._run.finish()


def import_wandb() -> Any:
    """The package; ConfigError where it is not installed."""
    try:
        return importlib.import_module("wandb")
    except ImportError as error:
        raise ConfigError(
            "log.wandb_project is set but wandb is not installed; pip install 'maskshards[wandb]', "
            "or leave the key out"
        ) from error


def check_trackers(config: TrainConfig, ranks: Ranks) -> None:
    """ConfigError for a tracker that cannot be, before anything is built or written."""
    if config.log.wandb_project is not None:
        ranks.from_first(lambda: import_wandb() is not None)


def wandb_id(run: Path) -> str:
    """The id in the run's folder, made at first; ConfigError for a file that holds no id."""
    path = run / WANDB_ID
    if not path.exists():
        with replacing(path) as hidden:
            hidden.write_text(f"{uuid.uuid4().hex}\n", encoding="ascii")
    found = read_text(path, errors="replace").strip()
    if not VALID_ID.fullmatch(found):
        raise ConfigError(
            f"{path} holds {found[:80]!r}, expected the id of a Weights & Biases run "
            "(letters, digits, - and _); write the right one into it, or delete it for a new run there"
        )
    return found


Tracker = TensorBoardFile | WandbRun  # takes each line of metrics.jsonl as it is written


def open_trackers(config: TrainConfig, run: Path, ranks: Ranks, first_step: int = 0) -> list[Tracker]:
    """The trackers that `log` asks for, of a run that has taken `first_step` steps.

    There are none on ranks other than the first. Every rank calls it, and all learn if the first cannot open
    one.
    """
    trackers: list[Tracker] = []

    def open_all() -> None:
        if config.log.tensorboard:
            trackers.append(TensorBoardFile(run, first_step))
        if config.log.wandb_project is not None:
            trackers.append(WandbRun(config, run))

    try:
        if ranks.is_first or ranks.control is not None:
            ranks.from_first(open_all)
    except BaseException:
        for opened in trackers:
            opened.close()
        raise
    return trackers
