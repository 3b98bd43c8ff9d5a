import errno
import logging
import os
import shutil
from pathlib import Path

import pytest

from maskshards.train.checkpoint.retention import prune, set_aside
from maskshards.train.checkpoint.run_files import LAST, checkpoints_of


def make(run: Path, *names: str, text: str = "") -> None:
    for name in names:
        (run / "checkpoints" / name).mkdir(parents=True)
        (run / "checkpoints" / name / "state.json").write_text(text or name)


def names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def test_prune_keeps_newest_and_archive(tmp_path: Path) -> None:
    make(tmp_path, *(f"step-000000{step}" for step in (10, 20, 30, 40, 50)))
    prune(tmp_path, keep_last=2, archive_interval=20)
    assert [path.name[-2:] for path in checkpoints_of(tmp_path, LAST)] == ["20", "40", "50"]


def test_a_checkpoint_that_cannot_be_removed_stops_nobody_and_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    make(tmp_path, "step-00000010", "step-00000020")

    def busy(path: Path) -> None:
        raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), str(path))

    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(shutil, "rmtree", busy)
        prune(tmp_path, keep_last=1, archive_interval=None)
    assert "step-00000010 cannot be removed yet" in caplog.text
    assert names(tmp_path) == ["step-00000010", "step-00000020"]
    prune(tmp_path, keep_last=1, archive_interval=None)
    assert names(tmp_path) == ["step-00000020"]


def test_what_lies_above_is_set_aside_and_the_rest_stays(tmp_path: Path) -> None:
    make(tmp_path, "step-00000004", "step-00000008", "best-00000002", "best-00000008", "mine")
    moved = set_aside(tmp_path, 4)
    assert [path.name for path in moved] == ["left-behind-step-00000008", "left-behind-best-00000008"]
    assert names(tmp_path) == sorted([*(p.name for p in moved), "best-00000002", "mine", "step-00000004"])
    assert set_aside(tmp_path, 4) == []


def test_a_kill_in_the_middle_leaves_no_hole_below_the_newest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path, "step-00000004", "step-00000005", "step-00000006")
    rename, left = Path.rename, [1]

    def killed_later(path: Path, target: Path) -> Path:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", killed_later)
    with pytest.raises(KeyboardInterrupt):
        set_aside(tmp_path, 4)
    assert [path.name for path in checkpoints_of(tmp_path, LAST)] == ["step-00000004", "step-00000005"]


def test_what_is_set_aside_again_and_again_is_never_lost(tmp_path: Path) -> None:
    make(tmp_path, "step-00000004")
    for damage in ("first", "second", "third"):
        make(tmp_path, "step-00000008", "best-00000006", text=damage)
        set_aside(tmp_path, 4)
    for name in ("left-behind-step-00000008", "left-behind-best-00000006"):
        found = sorted((tmp_path / "checkpoints").glob(f"{name}*"))
        assert [path.name for path in found] == [name, f"{name}.2", f"{name}.3"]
        assert [(path / "state.json").read_text() for path in found] == ["first", "second", "third"]
    assert [path.name for path in checkpoints_of(tmp_path, LAST)] == ["step-00000004"]
