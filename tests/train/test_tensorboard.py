import math
import struct
from pathlib import Path

import google_crc32c
import pytest

from train.tensorboard import TensorBoardFile, varint


def frames(data: bytes) -> list[bytes]:
    """A second reader of TFRecords, which checks both checksums by unmasking them."""
    found = []
    while data:
        (size,) = struct.unpack("<Q", data[:8])
        for content, stored in ((data[:8], data[8:12]), (data[12 : 12 + size], data[12 + size : 16 + size])):
            turned = (struct.unpack("<I", stored)[0] - 0xA282EAD8) % 2**32
            assert (turned >> 17 | turned << 15) % 2**32 == google_crc32c.value(content)
        found.append(data[12 : 12 + size])
        data = data[16 + size :]
    return found


def test_frames_are_whole_and_say_the_version(tmp_path: Path) -> None:
    board = TensorBoardFile(tmp_path)
    board.record({"kind": "train", "step": 3, "loss": 1.5, "order": "00ff"})
    board.close()
    first, second = frames(board.path.read_bytes())
    assert b"brain.Event:2" in first
    assert b"train/loss" in second
    assert struct.pack("<f", 1.5) in second
    assert b"order" not in second


def test_tensorboard_reads_them_back(tmp_path: Path) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    board = TensorBoardFile(tmp_path)
    for step in (1, 200, 70000):
        board.record({"kind": "train", "step": step, "loss": step / 2, "lr": math.nan, "order": "x"})
    board.record({"kind": "eval", "step": 200, "mIoU": 41.0, "num_images": 5})
    board.close()
    events = reader.EventAccumulator(str(board.path.parent))
    events.Reload()
    assert sorted(events.Tags()["scalars"]) == ["eval/mIoU", "eval/num_images", "train/loss"]
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [
        (1, 0.5),
        (200, 100.0),
        (70000, 35000.0),
    ]


@pytest.mark.parametrize(
    ("value", "data"), [(0, b"\0"), (127, b"\x7f"), (128, b"\x80\x01"), (300, b"\xac\x02")]
)
def test_varint(value: int, data: bytes) -> None:
    assert varint(value) == data
