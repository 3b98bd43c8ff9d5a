"""The machine's facts, and the attention of each shape of a step."""

from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend

from maskshards.train.bench.budgeted import Budget
from maskshards.train.bench.parts import machine
from maskshards.train.bench.parts.setting import Setting


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    return Setting(torch.device("cpu"), tmp_path, Budget(60), True)


def test_ceilings_are_measured_and_kept_for_the_floors(setting: Setting) -> None:
    found = machine.ceilings(setting)
    assert found["torch"] == torch.__version__
    assert found["copy_gb_per_s"] == setting.copy_gb_per_s > 0
    assert machine.version_of("no-such-package") == "missing"


def test_a_commit_is_named_where_there_is_git(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_git(*_: object, **__: object) -> None:
        raise FileNotFoundError("git")

    monkeypatch.setattr(machine.subprocess, "run", no_git)
    assert machine.commit() == "unknown"


def test_the_full_size_asks_for_the_published_shapes(tmp_path: Path) -> None:
    shapes = machine.attention_shapes(Setting(torch.device("cpu"), tmp_path, Budget(60), False))
    assert shapes["backbone"] == (1029, 1029, 16, 64, False)
    assert shapes["queries at stride 8, 2048"] == (100, 4096, 16, 128, True)
    assert len(shapes) == 9


def test_a_backend_that_cannot_says_no(setting: Setting) -> None:
    found = machine.attention_backends(setting)["backbone"]
    assert found["chosen"] in SDPBackend.__members__
    assert found["MATH"] > 0
    assert found["CUDNN_ATTENTION"] == "no"
