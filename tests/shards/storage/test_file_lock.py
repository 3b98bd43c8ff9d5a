import errno
import fcntl
import logging
import os
import socket
import subprocess
import sys

import pytest

from maskshards.shards.storage.file_lock import Holder, LockedError, held, holder_of

HOLDER = """
import sys
from pathlib import Path
from maskshards.shards.storage.file_lock import held
with held(Path(sys.argv[1]), 0.0, shared=len(sys.argv) > 2):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Starts a process that holds `tmp_path / "lock"` until its stdin is closed or it is killed."""
    started = []

    def start(*words):
        command = [sys.executable, "-c", HOLDER, str(tmp_path / "lock"), *words]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        started.append(process)
        assert process.stdout.readline() == b"held\n"
        return process

    yield start
    for process in started:
        process.kill()
        with process:  # closes its pipes
            pass


def test_the_second_process_is_told_who_holds_it(tmp_path, holder):
    other = holder()
    with pytest.raises(LockedError, match=f"process {other.pid} on ") as refused, held(tmp_path / "lock", 0):
        pass
    assert refused.value.holder.host == socket.gethostname()
    assert refused.value.holder.since[:4].isdigit()


def test_a_killed_holder_is_gone_at_once(tmp_path, holder):
    other = holder()
    other.kill()
    other.wait()
    assert holder_of(tmp_path / "lock").pid == other.pid  # it could not tidy up, and it does not matter
    with held(tmp_path / "lock", 0):
        assert holder_of(tmp_path / "lock").pid == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_a_holder_that_is_about_to_end_is_waited_for(tmp_path, holder, caplog):
    other = holder()

    class LetGo(logging.Handler):
        def emit(self, record):
            other.stdin.close()

    watcher = LetGo()
    logging.getLogger("maskshards.shards.storage.file_lock").addHandler(watcher)
    try:
        with held(tmp_path / "lock", 60):
            assert other.wait(timeout=900) == 0
    finally:
        logging.getLogger("maskshards.shards.storage.file_lock").removeHandler(watcher)
    assert caplog.text.count("waiting up to 60 s") == 1


def test_sharers_keep_out_who_wants_it_alone_and_leave_no_false_name(tmp_path, holder):
    alone = holder()
    alone.kill()
    alone.wait()
    holder("shared")
    with held(tmp_path / "lock", 0, shared=True):
        pass
    with pytest.raises(LockedError, match="held by another process") as refused, held(tmp_path / "lock", 0):
        pass
    assert refused.value.holder is None


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_where_there_are_no_locks_it_warns_and_goes_on(tmp_path, monkeypatch, caplog, number):
    def refuse(handle, kind):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with held(tmp_path / "lock", 0):
        pass
    assert "nothing keeps a second process from writing here" in caplog.text


def test_other_faults_of_locking_are_not_hidden(tmp_path, monkeypatch):
    def refuse(handle, kind):
        raise OSError(errno.EIO, "a broken disk")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(OSError, match="a broken disk"), held(tmp_path / "lock", 0):
        pass


def test_a_link_in_the_lock_files_place_is_not_followed(tmp_path):
    (tmp_path / "precious").write_text("keep")
    (tmp_path / "lock").symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match="lock"), held(tmp_path / "lock", 0):
        pass
    assert (tmp_path / "precious").read_text() == "keep"


@pytest.mark.parametrize("text", ["", "[1]", '{"pid": 1}', "\xff"])
def test_a_file_that_names_nobody(tmp_path, text):
    (tmp_path / "lock").write_text(text, encoding="latin-1")
    assert holder_of(tmp_path / "lock") is None
    assert holder_of(tmp_path / "missing") is None


def test_a_holder_reads_as_a_sentence():
    assert str(Holder(7, "node1", "2030-01-01T00:00:00+00:00")).startswith("process 7 on node1, since 2030")
