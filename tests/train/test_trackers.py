import sys
from pathlib import Path

import pytest
import torch

from shards.order import World
from train.distributed import Ranks
from train.schema import ConfigError, TrainConfig
from train.tensorboard import TensorBoardFile
from train.trackers import open_trackers

FIRST, SECOND = (Ranks(World(rank, 2), torch.device("cpu")) for rank in range(2))


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
    config = TrainConfig()
    config.log.tensorboard, config.log.wandb_project = False, "mine"
    with pytest.raises(ConfigError, match="pip install wandb"):
        open_trackers(config, tmp_path, FIRST)
