from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch

from maskshards.shards.order.order import World
from maskshards.train.config.schema import TrainConfig
from maskshards.train.distributed.ranks import Ranks
from maskshards.train.distributed.stop_signals import StopSignals
from maskshards.train.tracking.data_order import OrderChain
from maskshards.train.tracking.metrics_log import MetricsFile
from maskshards.train.tracking.progress import ProgressLine
from maskshards.train.tracking.trackers import Tracker
from maskshards.train.trainer.build import Parts
from maskshards.train.trainer.guards import Guard
from maskshards.train.trainer.instruments import Instruments
from maskshards.train.trainer.session import Session


class Notes:
    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []

    def record(self, record: dict[str, Any]) -> None:
        self.seen.append(record)

    def close(self) -> None:
        self.seen.clear()


def test_a_record_goes_to_file_and_trackers_and_state_tells_the_position(tmp_path: Path) -> None:
    ranks, notes = Ranks(World(), torch.device("cpu")), [Notes(), Notes()]
    config = TrainConfig(bs=3, n_gpus=2)
    config.datasets.root = "shards"
    manifest = SimpleNamespace(fingerprint="f", classes=("a", "b"), dataset="d", label_rule={})
    parts = SimpleNamespace(
        train_split=SimpleNamespace(manifest=manifest),
        val_split=SimpleNamespace(manifest=manifest),
        selection=SimpleNamespace(fingerprint="chosen"),
        segmenter=SimpleNamespace(backbone=SimpleNamespace(digest="d", position_rule=None, precision="full")),
    )
    session = Session(
        config, ranks, cast(Parts, parts), tmp_path, MetricsFile(tmp_path, ranks, 0),
        ProgressLine(0, 9, None), Instruments(ranks, cast(Guard, None), 1.0), StopSignals(), 12.5,
        cast(list[Tracker], notes),
    )  # fmt: skip
    session.record("train", 4, loss=1.0)
    assert all(one.seen == [{"kind": "train", "step": 4, "loss": 1.0}] for one in notes)
    assert session.metrics.has("train", 4)
    state = session.state(4)
    assert (state.step, state.position, state.score, state.class_names) == (4, 24, 12.5, ["a", "b"])
    assert state.fingerprint == "chosen"
    assert state.order == OrderChain().word
