"""What the system lacks: a working folder, UTF-8, open streams; ends with parents are shown by test_pool."""

import os
import subprocess
import sys

import pytest

from maskshards.shards.errors import StoreError
from maskshards.shards.process import check_working_folder

INFO = [sys.executable, "-m", "maskshards", "info", "größe"]


def test_a_working_folder_that_was_deleted_is_named(tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    check_working_folder()
    gone.rmdir()
    with pytest.raises(StoreError, match="the working folder was deleted; cd into one"):
        check_working_folder()


def test_a_locale_that_would_read_names_otherwise_is_told():
    ascii_names = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(INFO, env={**os.environ, **ascii_names}, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: file names are taken as ascii here, not as UTF-8; set PYTHONUTF8=1")
    done = subprocess.run(INFO, env={**os.environ, "LC_ALL": "C"}, capture_output=True, encoding="utf-8")
    assert "größe" in done.stderr  # Python itself takes UTF-8 there


@pytest.mark.parametrize(("closed", "told"), [(">&-", True), ("2>&-", False), ("<&- >&- 2>&-", False)])
def test_a_closed_stream_ends_no_command_and_no_file_takes_its_place(closed, told, tmp_path):
    """A library that writes to its standard error would write into that file."""
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {closed}', "sh", *INFO], capture_output=True, encoding="utf-8"
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert ("größe" in done.stderr) == told
    program = (
        "import sys; from maskshards.cli import main; main(['--help']);"
        f"sys.exit(0 if open({str(tmp_path / 'file')!r}, 'w').fileno() > 2 else 1)"
    )
    words = ["sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, "-c", program]
    assert subprocess.run(words, capture_output=True, check=False).returncode == 0
