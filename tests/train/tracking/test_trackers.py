import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from maskshards.shards.order.order import World
from maskshards.train.config.schema import ConfigError, TrainConfig
from maskshards.train.distributed.ranks import Ranks
from maskshards.train.tracking.tensorboard import TensorBoardFile
from maskshards.train.tracking.trackers import check_trackers, open_trackers

FIRST, SECOND = (Ranks(World(rank, 2), torch.device("cpu")) for rank in range(2))


class FakeWandb(ModuleType):
    """Stands in for the package: remembers calls, and refuses what the real one refuses."""

    class Error(Exception):
        pass

    def __init__(self) -> None:
        super().__init__("wandb")
        self.inits: list[dict[str, Any]] = []
        self.rows: list[dict[str, Any]] = []
        self.metrics: dict[str, str | None] = {}
        self.finished = 0
        self.offer: Exception | None = None

    def init(self, **options: Any) -> "FakeWandb":
        if self.offer is not None:
            raise self.offer
        self.inits.append(options)
        return self

    def define_metric(self, name: str, step_metric: str | None = None) -> None:
        self.metrics[name] = step_metric

    def log(self, figures: dict[str, Any], step: int | None = None) -> None:
        assert step is None, "a step of its own may not go backwards"
        self.rows.append(figures)

    def finish(self) -> None:
        self.finished += 1


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def wandb_only() -> TrainConfig:
    config = TrainConfig()
    config.log.tensorboard, config.log.wandb_project = False, "mine"
    return config


def test_tensorboard_is_on_by_default_and_for_the_first_rank_only(tmp_path: Path) -> None:
    config = TrainConfig()
    (tracker,) = open_trackers(config, tmp_path, FIRST)
    assert isinstance(tracker, TensorBoardFile)
    tracker.close()
    assert open_trackers(config, tmp_path, SECOND) == []
    config.log.tensorboard = False
    assert open_trackers(config, tmp_path, FIRST) == []


def test_wandb_is_an_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"pip install 'maskshards\[wandb\]'"):
        open_trackers(wandb_only(), tmp_path, FIRST)
    with pytest.raises(ConfigError, match="not installed"):
        check_trackers(wandb_only(), FIRST)


def test_a_continued_run_goes_on_in_the_same_wandb_run(tmp_path: Path, wandb: FakeWandb) -> None:
    for first_step in (0, 3):
        (tracker,) = open_trackers(wandb_only(), tmp_path, FIRST, first_step)
        tracker.close()
    (one, other) = wandb.inits
    assert one["id"] == other["id"] == (tmp_path / "wandb_id.txt").read_text().strip()
    assert {init["resume"] for init in wandb.inits} == {"allow"}
    assert (one["project"], one["name"], one["dir"]) == ("mine", tmp_path.name, tmp_path)
    assert one["config"]["log"]["wandb_project"] == "mine"
    assert wandb.finished == 2
    assert [path.name for path in tmp_path.iterdir()] == ["wandb_id.txt"]


def test_two_folders_are_two_wandb_runs(tmp_path: Path, wandb: FakeWandb) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        open_trackers(wandb_only(), tmp_path / name, FIRST)
    assert len({init["id"] for init in wandb.inits}) == 2


def test_steps_that_go_backwards_are_figures_on_an_axis_of_their_own(
    tmp_path: Path, wandb: FakeWandb
) -> None:
    (tracker,) = open_trackers(wandb_only(), tmp_path, FIRST)
    for step in (3, 4, 3):
        tracker.record({"kind": "train", "step": step, "loss": step / 2})
    assert wandb.metrics == {"step": None, "*": "step"}
    assert wandb.rows == [{"step": step, "train/loss": step / 2} for step in (3, 4, 3)]


@pytest.mark.parametrize("content", ["", "two words", "x" * 65, "../up"])
def test_an_id_that_is_none_is_refused(tmp_path: Path, wandb: FakeWandb, content: str) -> None:
    (tmp_path / "wandb_id.txt").write_text(content)
    with pytest.raises(ConfigError, match=r"wandb_id\.txt holds .* expected the id"):
        open_trackers(wandb_only(), tmp_path, FIRST)


def test_what_wandb_objects_to_is_told(tmp_path: Path, wandb: FakeWandb) -> None:
    wandb.offer = wandb.Error("api_key not configured")
    with pytest.raises(ConfigError, match=r"api_key not configured; run `wandb login`"):
        open_trackers(wandb_only(), tmp_path, FIRST)


def test_every_rank_asks_the_first_so_that_all_learn_of_its_failure(
    tmp_path: Path, wandb: FakeWandb, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def from_first(ranks: Ranks, work: Callable[[], None]) -> None:
        asked.append(ranks.world.rank)
        if ranks.is_first:
            work()

    monkeypatch.setattr(Ranks, "from_first", from_first)
    for ranks in (FIRST, SECOND):
        open_trackers(wandb_only(), tmp_path, replace(ranks, control=object()))  # type: ignore[arg-type]
    assert asked == [0, 1]
    assert len(wandb.inits) == 1


def test_what_was_opened_is_closed_when_the_next_refuses(
    tmp_path: Path, wandb: FakeWandb, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[TensorBoardFile] = []
    monkeypatch.setattr(TensorBoardFile, "close", lambda file: closed.append(file))
    config, wandb.offer = wandb_only(), wandb.Error("no entry")
    config.log.tensorboard = True
    with pytest.raises(ConfigError, match="no entry"):
        open_trackers(config, tmp_path, FIRST)
    assert len(closed) == 1
    closed[0]._writer.close()
