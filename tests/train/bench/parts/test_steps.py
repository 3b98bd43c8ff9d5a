"""Whole steps as parts: what the dry run of the command does not show."""

import os
from pathlib import Path

import pytest
import torch

from maskshards.train.bench.budgeted import Budget, NotHere
from maskshards.train.bench.parts import steps
from maskshards.train.bench.parts.setting import Setting


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    return Setting(torch.device("cpu"), tmp_path, Budget(60), True)


def test_threads_are_on_few_cores_for_the_body_only() -> None:
    before = os.sched_getaffinity(0)
    with steps.on_cores(1):
        assert len(os.sched_getaffinity(0)) == 1
    assert os.sched_getaffinity(0) == before


def test_graphs_and_learning_say_what_they_lack(setting: Setting) -> None:
    with pytest.raises(NotHere, match="CUDA device"):
        steps.compiled(setting, 32, "model", "reduce-overhead")
    with pytest.raises(NotHere, match="--shards"):
        steps.learning(setting, None)


def test_the_large_backbone_stands_alone(setting: Setting) -> None:
    setting.bench(32)
    found = steps.large_backbone(setting)
    assert found["images_per_s"] > 0
    assert not setting.benches


def test_learning_stands_beside_the_recorded_curve(
    setting: Setting, tiny_shards: Path, tmp_path: Path
) -> None:
    recorded = tmp_path / "precision.json"
    recorded.write_text('{"last": {"mixed": [40.5]}}')
    setting.shards, setting.given = tiny_shards, ("decoder_head.num_classes=3",)
    found = steps.learning(setting, recorded)
    assert found["recorded_last"] == [40.5]
    assert found["last"] == pytest.approx(sum(found["curve"]) / 3)
