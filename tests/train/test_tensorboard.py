import math
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from train.tensorboard import TensorBoardFile


def test_figures_are_read_back_and_everything_else_is_left_out(tmp_path: Path) -> None:
    board = TensorBoardFile(tmp_path)
    for step in (1, 200, 70000):
        board.record({"kind": "train", "step": step, "loss": step / 2, "lr": math.nan, "order": "x"})
    board.record({"kind": "eval", "step": 200, "mIoU": 41.0, "num_images": 5})
    board.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert sorted(events.Tags()["scalars"]) == ["eval/mIoU", "eval/num_images", "train/loss"]
    read = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert read == [(1, 0.5), (200, 100.0), (70000, 35000.0)]


def test_a_figure_is_on_disk_before_the_run_ends(tmp_path: Path) -> None:
    board = TensorBoardFile(tmp_path)
    (path,) = (tmp_path / "tensorboard").iterdir()
    before = path.stat().st_size
    board.record({"kind": "train", "step": 1, "loss": 2.0})
    assert path.stat().st_size > before
    board.close()
