"""What is prepared in advance is what would have been prepared in its turn, and queued before the wait."""

from pathlib import Path
from typing import Any

import pytest
import torch

from maskshards.shards.loading.device_prefetcher import DevicePrefetcher
from maskshards.shards.order.order import World
from maskshards.train.checkpoint.checkpoint import read_checkpoint
from maskshards.train.config.load import load_config
from maskshards.train.distributed.ranks import Ranks
from maskshards.train.distributed.stop_signals import StopSignals
from maskshards.train.losses import matched_loss
from maskshards.train.losses.host_copies import HostCopy
from maskshards.train.tracking.metrics_log import read_metrics
from maskshards.train.trainer import loop
from maskshards.train.trainer.run import run_training
from maskshards.train.trainer.step import Objective

pytestmark = pytest.mark.usefixtures("shallow")
ALONE = Ranks(World(), torch.device("cpu"))


def train(arguments: list[str]) -> None:
    with StopSignals() as stop:
        run_training(load_config(arguments), ALONE, stop)


def outcome(run: Path) -> tuple[dict[str, torch.Tensor], list[Any]]:
    """The last weights, and what the log says of every step."""
    lines = [line for line in read_metrics(run / "metrics.jsonl") if line["kind"] == "train"]
    return read_checkpoint(run / "model_final.pth").weights, [
        (line["step"], line["order"], line["loss"], line["grad_norm"]) for line in lines
    ]


class RecordingCopy(HostCopy):
    events: list[str]

    def __init__(self, source: Any) -> None:
        self.events.append("costs copied")
        super().__init__(source)

    def wait(self) -> Any:
        self.events.append("waited")
        return super().wait()


def test_a_run_that_looks_ahead_takes_the_same_steps_in_another_order(
    tiny_run: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [*tiny_run, "log.interval=1"]
    train(arguments)
    events: list[str] = []
    prepare = Objective.prepare

    def recorded(self: Objective, batch: Any) -> Any:
        events.append(f"prepared {batch.positions[0]}")
        return prepare(self, batch)

    monkeypatch.setattr(RecordingCopy, "events", events, raising=False)
    monkeypatch.setattr(matched_loss, "HostCopy", RecordingCopy)
    monkeypatch.setattr(Objective, "prepare", recorded)
    monkeypatch.setattr(loop, "looks_ahead", lambda session: True)
    monkeypatch.setattr(DevicePrefetcher, "at_hand", lambda self: True)
    train([*arguments, f"output_dir={tmp_path / 'ahead'}"])
    assert events[:7] == [
        "prepared 0", "costs copied", "prepared 2", "waited", "costs copied", "prepared 4", "waited",
    ]  # fmt: skip
    (weights, lines), (expected, plain) = outcome(tmp_path / "ahead"), outcome(tmp_path / "run")
    assert lines == plain
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], value) for name, value in expected.items())
