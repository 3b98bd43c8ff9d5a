"""Which checkpoint a path means, told from the names alone."""

from pathlib import Path

import pytest
from huggingface_hub.constants import CONFIG_NAME, SAFETENSORS_SINGLE_FILE

from maskshards.train.checkpoint.run_files import (
    FINAL,
    FOLDER,
    LAST,
    STATE,
    checkpoints_of,
    meant_by,
    newest_in,
    step_of,
)
from maskshards.train.checkpoint.train_state import CheckpointError


def touched(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def test_of_a_run_the_best_then_the_last_then_the_final_weights_are_meant(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no checkpoint \(expected state\.json"):
        meant_by(tmp_path)
    final = touched(tmp_path / FINAL)
    assert meant_by(tmp_path) == meant_by(final) == final
    last = [touched(tmp_path / FOLDER / f"{LAST}{step}" / STATE).parent for step in (3, 20)]
    (tmp_path / FOLDER / f"{LAST}30 (copy)").mkdir()
    (tmp_path / FOLDER / f"{LAST}40").touch()
    assert checkpoints_of(tmp_path, LAST) == last
    assert meant_by(tmp_path) == last[1]
    best = touched(tmp_path / FOLDER / "best-3" / STATE).parent
    assert meant_by(tmp_path) == meant_by(best) == best
    assert step_of(best) == 3
    assert newest_in(tmp_path) == last[1].resolve()  # to go on from: the best has no optimiser
    assert newest_in(last[0]) == last[0].resolve()


def test_a_shared_folder_and_a_path_that_is_not_there(tmp_path: Path) -> None:
    for name in (CONFIG_NAME, SAFETENSORS_SINGLE_FILE):
        touched(tmp_path / name)
    assert meant_by(tmp_path) == tmp_path
    with pytest.raises(CheckpointError, match=r"gone does not exist; give a run's output_dir"):
        meant_by(tmp_path / "gone")
