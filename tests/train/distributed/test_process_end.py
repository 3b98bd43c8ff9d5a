"""Ends that something would keep: the words, the status, and that they come."""

import json
import signal
import threading
from pathlib import Path

import pytest
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from maskshards.train.distributed import process_end as module
from maskshards.train.distributed.early_stop import Stopped
from maskshards.train.distributed.lost_ranks import LostRankError
from maskshards.train.distributed.process_end import ended_at_last, last_words, status_of


def test_a_process_that_cannot_leave_its_group_is_ended_with_its_error(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    gone = threading.Event()
    registered: list[object] = []
    monkeypatch.setattr(module.atexit, "register", registered.append)
    monkeypatch.setattr(module, "GRACE_S", 0.0)
    monkeypatch.setattr(module.os, "_exit", lambda status: gone.set())
    with ended_at_last(LostRankError("no sign of life from rank 1")):
        assert gone.wait(600)
    assert capfd.readouterr().err == "error: no sign of life from rank 1\n"
    monkeypatch.setattr(module, "GRACE_S", 3600.0)
    gone.clear()
    with ended_at_last(KeyboardInterrupt()):
        pass
    assert not gone.is_set()
    assert registered == [module.cut_short]  # after the lost rank alone
    module.cut_short()
    assert gone.is_set()


def test_torchruns_account_of_the_ranks_holds_our_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    last_words("error: no progress of rank 1")
    failure = ProcessFailure(1, 7, 2, str(tmp_path / "error.json"))
    assert failure.message == "error: no progress of rank 1"
    assert json.loads((tmp_path / "error.json").read_text())["timestamp"] == failure.timestamp > 0
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "gone" / "error.json"))
    last_words("error: again")
    assert capsys.readouterr().err == "error: no progress of rank 1\nerror: again\n"


def test_a_stop_by_signal_keeps_its_status() -> None:
    assert status_of(Stopped(signal.SIGTERM, begun=False)) == 143
    assert status_of(OSError("disk")) == 2
