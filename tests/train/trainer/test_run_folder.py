"""One run a folder, with real processes: refused while another lives, free as soon as it is killed."""

import os
import socket
from pathlib import Path

import pytest
import torch

from maskshards.shards.order.order import World
from maskshards.shards.storage.file_lock import held
from maskshards.train.__main__ import main
from maskshards.train.checkpoint.output_place import LOCK
from maskshards.train.checkpoint.run_files import LAST, checkpoints_of, step_of
from maskshards.train.config.load import WRITTEN, load_config
from maskshards.train.config.schema import ConfigError
from maskshards.train.distributed.ranks import Ranks
from maskshards.train.trainer import run_folder
from tests.forked import ForkedPython
from tests.train.launch import ranks_of

ALONE = Ranks(World(), torch.device("cpu"))

# `maskshards train` of a user who does not wait for the other run.
IMPATIENT = """
import sys
from maskshards.train.trainer import run_folder
from maskshards.train.__main__ import main
run_folder.PATIENCE_S = 0.1
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_folder, "PATIENCE_S", 0.0)


@pytest.mark.usefixtures("impatient")
def test_a_second_run_is_refused_until_the_first_is_killed(
    tiny_run: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*tiny_run, "log.interval=1", "checkpoint.interval=1", "eval.eval_interval=4000"]
    again = [*arguments, "resume_from=auto"]
    words = ["-m", "train", *again, "scheduler.total_iter=4000"]
    with ForkedPython(words, env={**os.environ, "OMP_NUM_THREADS": "1"}) as first:
        try:
            next(line for line in first.stderr if "step 3/" in line)
            refused = [main(again), main([*arguments, f"load_from={tmp_path / 'run'}"])]
        finally:
            first.kill()
    refusal = capsys.readouterr().err
    assert refused == [2, 2], refusal
    who = f"another run is writing here (process {first.pid} on {socket.gethostname()}"
    assert refusal.count(who) == 2
    assert "name another folder" in refusal
    assert (tmp_path / "run" / LOCK).is_file()  # left over, and held by nobody
    newest = checkpoints_of(tmp_path / "run", LAST)[-1]
    last = f"scheduler.total_iter={step_of(newest) + 1}"
    assert main([*again, last]) == 0
    assert "another run" not in capsys.readouterr().err
    assert not (tmp_path / "run" / LOCK).exists()


def test_all_ranks_are_refused_together(tiny_run: list[str], tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with (
        held(tmp_path / "run" / LOCK, 0),
        ranks_of(["-c", IMPATIENT, *tiny_run, "bs=1"]) as members,
    ):
        outputs = [member.communicate(900) for member in members]
    assert [member.returncode for member in members] == [2, 2], outputs
    for (_, err), words in zip(
        outputs, ("error: output_dir", "error: rank 0 gave up: output_dir"), strict=True
    ):
        assert words in err
        assert f"another run is writing here (process {os.getpid()}" in err


def test_the_folder_is_made_and_let_go(tiny_run: list[str], tmp_path: Path) -> None:
    config = load_config([*tiny_run, f"output_dir={tmp_path / 'a' / 'b'}"])
    with run_folder.run_folder(config, ALONE) as folder:
        assert folder == tmp_path / "a" / "b"
        assert (folder / LOCK).is_file()
        (folder / WRITTEN).touch()
    assert list(folder.iterdir()) == [folder / WRITTEN]


def test_a_run_that_is_refused_leaves_no_folder_of_its_own(tiny_run: list[str], tmp_path: Path) -> None:
    config = load_config([*tiny_run, f"output_dir={tmp_path / 'a' / 'b'}"])
    with pytest.raises(ConfigError, match="no such data"), run_folder.run_folder(config, ALONE):
        raise ConfigError("no such data")
    assert not (tmp_path / "a").exists()


@pytest.mark.usefixtures("impatient")
def test_one_process_does_not_run_twice_in_a_folder_either(tiny_run: list[str]) -> None:
    config = load_config(tiny_run)
    with (
        run_folder.run_folder(config, ALONE),
        pytest.raises(ConfigError, match="another run is writing here"),
        run_folder.run_folder(config, ALONE),
    ):
        pass


def test_a_folder_that_cannot_be_made_is_named(tiny_run: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    config = load_config([*tiny_run, f"output_dir={tmp_path}/file/below"])
    with (
        pytest.raises(ConfigError, match=r"file/below cannot be written to .Not a directory.; name another"),
        run_folder.run_folder(config, ALONE),
    ):
        pass
