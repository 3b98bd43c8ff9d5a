import math
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer

from maskshards.shards.order.order import World
from maskshards.train.config.load import load_config
from maskshards.train.distributed.ranks import Ranks
from maskshards.train.distributed.stop_signals import StopSignals
from maskshards.train.tracking.metrics_log import read_metrics
from maskshards.train.tracking.tensorboard import TensorBoardFile
from maskshards.train.trainer import loop
from maskshards.train.trainer.run import run_training
from maskshards.train.trainer.session import Session


def train(arguments: list[str]) -> None:
    with StopSignals() as stop:
        run_training(load_config(arguments), Ranks(World(), torch.device("cpu")), stop)


def read_back(run: Path) -> EventAccumulator:
    """What TensorBoard itself makes of the event files of a run."""
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    return events


def test_figures_are_read_back_and_everything_else_is_left_out(tmp_path: Path) -> None:
    board = TensorBoardFile(tmp_path)
    for step in (1, 200, 70000):
        board.record({"kind": "train", "step": step, "loss": step / 2, "lr": math.nan, "order": "x"})
    board.record({"kind": "eval", "step": 200, "mIoU": 41.0, "num_images": 5})
    board.close()
    events = read_back(tmp_path)
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


def test_steps_taken_again_are_shown_once_and_earlier_ones_stay(tmp_path: Path) -> None:
    for life, (first, last) in enumerate([(0, 5), (3, 6)]):
        board = TensorBoardFile(tmp_path, first)
        for step in range(first + 1, last + 1):
            board.record({"kind": "train", "step": step, "loss": 10.0 * life + step})
        board.close()
    read = [(event.step, event.value) for event in read_back(tmp_path).Scalars("train/loss")]
    assert read == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 14.0), (5, 15.0), (6, 16.0)]


@pytest.mark.usefixtures("shallow")
def test_a_run_killed_in_the_middle_and_continued_shows_each_step_once(
    tiny_run: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [
        *tiny_run, "bs=1", "scheduler.total_iter=5", "checkpoint.interval=2", "eval.eval_interval=5",
        "eval.max_val_samples=1", "log.interval=1", "log.report=False", "resume_from=auto",
    ]  # fmt: skip
    # Names of event files end in a count of this process and are read in the order of text: 10 before 9 where
    # both lives fall into one second.
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(10))
    whole = loop.one_step

    def killed(session: Session, batches: object, step: int) -> None:
        if step == 4:  # its checkpoint is of step 2: 3 is taken again
            raise KeyboardInterrupt
        whole(session, batches, step)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "one_step", killed)
    with pytest.raises(KeyboardInterrupt):
        train(arguments)
    assert [event.step for event in read_back(tmp_path / "run").Scalars("train/loss")] == [1, 2, 3]
    monkeypatch.setattr(loop, "one_step", whole)
    train(arguments)
    events, records = read_back(tmp_path / "run"), read_metrics(tmp_path / "run" / "metrics.jsonl")
    for tag in ("train/loss", "train/seconds", "eval/mIoU", "checkpoint/seconds", "phases/step_ms"):
        kind, name = tag.split("/")
        expected = [(one["step"], one[name]) for one in records if one["kind"] == kind]
        found = [(event.step, event.value) for event in events.Scalars(tag)]
        assert [step for step, _ in found] == [step for step, _ in expected]
        assert [value for _, value in found] == pytest.approx([value for _, value in expected])
