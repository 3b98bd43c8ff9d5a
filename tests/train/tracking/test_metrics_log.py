import errno
import json
import math
from pathlib import Path

import pytest
import torch

from maskshards.shards.order.order import World
from maskshards.train.distributed.ranks import Ranks
from maskshards.train.tracking.metrics_log import METRICS, MetricsFile, read_metrics

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


NO_RECORDS = [
    b"\xff\xfe\x00", b"[1]\n", b'{"step": 5}\n', b'{"kind": "train", "step": "5"}\n',
    b"[" * 100_000 + b"\n", b'{"kind": "train", "step": 5, "loss": ' + b"[" * 100_000 + b"\n",
    b'{"kind": "train", "step": 5, "loss": NaN}\n', b'{"kind": "train", "step": 5, "loss": 1e999}\n',
    b'{"kind": "train", "step": 5, "loss": ' + b"9" * 400 + b"}\n",
    b'{"kind": "train", "step": 5, "loss": "2.5"}\n', b'{"kind": "eval", "step": 5, "mIoU": {"a": 1}}\n',
    b'{"kind": "train", "step": 5, "order": [1]}\n', b'{"kind": ["train"], "step": 5}\n',
    b'{"kind": "train", "step": true}\n', b'{"kind": "train", "step": -5}\n',
    b'{"kind": "train", "step": 9223372036854775808}\n', b'{"kind": "train", "step": 5, "step": 1}\n',
]  # fmt: skip


@pytest.mark.parametrize("tail", NO_RECORDS)
def test_a_spoiled_tail_is_left_out_aloud(
    tmp_path: Path, tail: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / METRICS
    whole = b'{"kind": "train", "step": %d, "order": "0f"}\n'
    path.write_bytes(whole % 4 + tail + whole % 6)
    assert [record["step"] for record in read_metrics(path)] == [4]
    assert f"{path}: line 2 is no record" in caplog.text


def test_a_full_disk_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = MetricsFile(tmp_path, ALONE, 0)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("builtins.open", full)
    with pytest.raises(OSError, match=rf"No space left on device: '{metrics.path}'"):
        metrics.write("train", 1)
