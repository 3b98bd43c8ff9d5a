from pathlib import Path

import pytest
import torch

from maskshards.shards.format.manifest import open_split
from maskshards.shards.order.order import World
from maskshards.train.checkpoint.checkpoint import read_checkpoint
from maskshards.train.checkpoint.run_files import BEST, checkpoints_of
from maskshards.train.config.load import load_config
from maskshards.train.distributed.ranks import Ranks
from maskshards.train.distributed.stop_signals import StopSignals
from maskshards.train.tracking.metrics_log import read_metrics
from maskshards.train.trainer import validate
from maskshards.train.trainer.run import run_training
from tests.train.conftest import write_shards

ALONE = Ranks(World(), torch.device("cpu"))


def train(arguments: list[str]) -> None:
    with StopSignals() as stop:
        run_training(load_config(arguments), ALONE, stop)


@pytest.fixture
def arguments(tiny_run: list[str]) -> list[str]:
    return [*tiny_run, "decoder_head.type=linear", "scheduler.total_iter=3", "eval.eval_interval=1"]


def test_the_best_weights_are_kept_with_their_score(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([50.0, 70.0, 60.0])
    real = validate.evaluate

    class Scripted:
        def __init__(self, result: object, score: float) -> None:
            self._result, self._score = result, score

        def __getattr__(self, name: str) -> object:
            return getattr(self._result, name)

        def metric(self, name: str) -> float:
            return self._score

    monkeypatch.setattr(validate, "evaluate", lambda *a, **k: Scripted(real(*a, **k), next(scores)))
    train(arguments)
    (best,) = checkpoints_of(tmp_path / "run", BEST)
    assert best.name == "best-00000002"
    found = read_checkpoint(best)
    assert found.state is not None
    assert found.state.score == 70.0


def test_every_evaluation_renews_report_and_results(arguments: list[str], tmp_path: Path) -> None:
    train(arguments)
    run = tmp_path / "run"
    report = (run / "report.html").read_text()
    assert report.count("<img ") == 4 * 4  # four validation images as four views
    assert "after step 3, 4 images" in report
    assert (run / "results-semantic-segmentation.json").is_file()
    assert [record["step"] for record in read_metrics(run / "metrics.jsonl") if record["kind"] == "eval"] == [
        1,
        2,
        3,
    ]
    assert len(list((run / "tensorboard").iterdir())) == 1


def test_images_and_windows_are_progress_while_an_evaluation_runs(arguments: list[str]) -> None:
    """What the other ranks hear while this one scores: each forward pass says again where it is."""
    told: list[str] = []

    class Telling(Ranks):
        def doing(self, what: str, *, waits: bool = False, slow: bool = False) -> None:
            told.append(what)

    words = [*arguments, "eval.crop_size=32", "eval.stride=32", "scheduler.total_iter=1"]
    with StopSignals() as stop:
        run_training(load_config(words), Telling(World(), torch.device("cpu")), stop)
    scoring = [what for what in told if what.startswith("evaluating, ")]
    counts = [scoring.count(f"evaluating, {done} images done") for done in range(5)]
    assert sum(counts) == len(scoring)
    assert min(counts[:4]) >= 2  # 64 pixels in windows of 32: several passes an image
    assert counts[4] == 1
    after = told[told.index("evaluating, 4 images done") :]
    assert after[1:] == [
        "waiting for the scores of all ranks", "keeping the best weights", "saving weights.safetensors",
        "saving weights.safetensors", "writing results and report",
    ]  # fmt: skip


def test_the_report_names_classes_that_training_never_sees(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for split, numbers in (("training", range(4)), ("validation", range(4, 6))):
        write_shards(tmp_path / "shards", split, numbers, ("ground", "box", "disc", "gone"))
    words = [f"datasets.root={tmp_path / 'shards'}", "decoder_head.num_classes=4", "scheduler.total_iter=1"]
    train([*arguments, *words])
    told = "1 class was never seen in training, since no image of the training split shows gone."
    assert told in (tmp_path / "run" / "report.html").read_text()
    split = open_split(str(tmp_path / "shards/training"))
    monkeypatch.setattr(validate, "MOST_COUNTED", 3)
    assert validate.unseen_classes(split) == []
    monkeypatch.undo()
    (tmp_path / "shards/training/samples.parquet").unlink()
    split.close()
    assert validate.unseen_classes(split) == []
    assert "the report cannot say which classes the training split lacks" in caplog.text


def test_report_and_boards_can_be_left_out(arguments: list[str], tmp_path: Path) -> None:
    train([*arguments, "log.report=False", "log.tensorboard=False", "scheduler.total_iter=1"])
    assert not (tmp_path / "run" / "report.html").exists()
    assert not (tmp_path / "run" / "tensorboard").exists()


def test_an_untrained_head_is_scored_but_never_the_best(arguments: list[str], tmp_path: Path) -> None:
    train([*arguments, "eval.before_training=True", "optimizer.lr=1e-12"])
    steps = [
        record["step"]
        for record in read_metrics(tmp_path / "run" / "metrics.jsonl")
        if record["kind"] == "eval"
    ]
    assert steps == [0, 1, 2, 3]
    assert [path.name for path in checkpoints_of(tmp_path / "run", BEST)] == ["best-00000001"]


def test_a_run_killed_while_the_best_is_written_scores_that_step_again(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*words: object) -> None:
        raise SystemExit("killed")

    with monkeypatch.context() as patch:
        patch.setattr(validate, "save_best", killed)
        with pytest.raises(SystemExit, match="killed"):
            train([*arguments, "eval.eval_interval=3"])
    train([*arguments, "eval.eval_interval=3", "resume_from=auto"])
    assert [path.name for path in checkpoints_of(tmp_path / "run", BEST)] == ["best-00000003"]
    kinds = [record["kind"] for record in read_metrics(tmp_path / "run" / "metrics.jsonl")]
    assert kinds.count("eval") == 1
