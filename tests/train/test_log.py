import json
import math
from pathlib import Path

import pytest
import torch

from shards.order import World
from train.distributed import Ranks
from train.log import Meter, MetricsFile, read_metrics

ALONE = Ranks(World(), torch.device("cpu"))
SECOND = Ranks(World(1, 2), torch.device("cpu"))


def test_lines_are_strict_json_in_order(tmp_path: Path) -> None:
    metrics = MetricsFile(tmp_path, ALONE, 0)
    metrics.write("train", 1, loss=2.5, grad_norm=math.nan)
    metrics.write("eval", 1, mIoU=50.0)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"kind": "train", "step": 1, "loss": 2.5, "grad_norm": None},
        {"kind": "eval", "step": 1, "mIoU": 50.0},
    ]


def test_continuing_cuts_what_will_be_written_anew(tmp_path: Path) -> None:
    first = MetricsFile(tmp_path, ALONE, 0)
    for step in (1, 2, 3):
        first.write("train", step)
    again = MetricsFile(tmp_path, ALONE, 2)
    assert again.has("train", 2)
    assert not again.has("train", 3)
    assert [record["step"] for record in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2]


def test_a_torn_last_line_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"kind": "train", "step": 1}\n{"kind": "tr')
    assert [record["step"] for record in read_metrics(path)] == [1]
    MetricsFile(tmp_path, ALONE, 5).write("train", 2)
    assert [record["step"] for record in read_metrics(path)] == [1, 2]


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    MetricsFile(tmp_path / "run", SECOND, 0).write("train", 1)
    assert not (tmp_path / "run").exists()


def test_meter_gives_means_and_starts_anew() -> None:
    meter = Meter(clip_norm=1.0)
    for loss, norm in ((2.0, 0.5), (4.0, 3.0)):
        meter.add("loss", torch.tensor(loss))
        meter.add_step(torch.tensor(norm), images=8, wait_ms=1.0)
    figures = meter.take(ALONE)
    assert figures["loss"] == 3.0
    assert figures["grad_norm"] == pytest.approx(1.75)
    assert figures["clipped"] == 0.5
    assert figures["images_per_s"] == pytest.approx(16 / figures["seconds"])
    assert figures["wait_share"] == pytest.approx(0.002 / figures["seconds"])
    assert (meter.steps, meter.images, meter.sums) == (0, 0, {})
