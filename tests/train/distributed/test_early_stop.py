"""SIGTERM and SIGUSR1 before the loop's own handlers stand: one line and the usual status."""

import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from maskshards.train.distributed.early_stop import SIGNALS, Stopped, stops_told
from tests.train.launch import ended, ranks_of

# `maskshards train` that gets a signal where a module is loaded, or where a function of one is called.
TOLD_AT_IMPORT = """
import importlib.abc, os, sys
from {command} import main
class Teller(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "torch":
            os.kill(os.getpid(), {number})
sys.meta_path.insert(0, Teller())
sys.exit(main({before} + sys.argv[1:]))
"""
TOLD_WHILE_JOINING = """
import os, sys
from maskshards.train.__main__ import main
from maskshards.train.distributed import {module}
real = {module}.{name}
def told(*given, **named):
    if os.environ["RANK"] == "1":
        os.kill(os.getpid(), {number})
    return real(*given, **named)
{module}.{name} = told
sys.exit(main(sys.argv[1:]))
"""
LINE = "stopped by {} before anything was trained or scored; the same command starts again\n"


@pytest.mark.parametrize(
    ("command", "before", "wish"),
    [("maskshards.cli", '["train"]', signal.SIGUSR1), ("maskshards.train.__main__", "[]", signal.SIGTERM)],
)
def test_a_signal_that_comes_while_torch_is_loaded_is_told_in_one_line(
    tiny_run: list[str], tmp_path: Path, command: str, before: str, wish: signal.Signals
) -> None:
    program = TOLD_AT_IMPORT.format(command=command, before=before, number=int(wish))
    done = subprocess.run([sys.executable, "-c", program, *tiny_run], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (128 + wish, "", LINE.format(wish.name))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("module", "name", "wish"),
    [("connect", "open_store", signal.SIGUSR1), ("ranks", "connect", signal.SIGINT)],
)
def test_a_rank_that_is_told_while_all_join_ends_at_once_and_the_other_knows(
    tiny_run: list[str], tmp_path: Path, module: str, name: str, wish: signal.Signals
) -> None:
    program = TOLD_WHILE_JOINING.format(module=module, name=name, number=int(wish))
    with ranks_of(["-c", program, *tiny_run, "bs=1", "n_gpus=2", "join_timeout_s=3"]) as members:
        statuses, words = ended(members)
    assert statuses == [2, 128 + wish], words
    assert words[1] == LINE.format(wish.name)
    assert "rank" in words[0]
    assert "Traceback" not in words[0]
    assert not (tmp_path / "run").exists()


def test_handlers_come_back_and_a_thread_leaves_them_alone() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]

    def handlers() -> list[object]:
        with stops_told():
            return [signal.getsignal(number) for number in SIGNALS]

    assert handlers() != before
    assert [signal.getsignal(number) for number in SIGNALS] == before
    with ThreadPoolExecutor(1) as threads:
        assert threads.submit(handlers).result() == before


def test_the_words_say_whether_there_is_something_to_go_on_from() -> None:
    assert str(Stopped(signal.SIGTERM)) == "stopped by SIGTERM"
    early = Stopped(signal.SIGTERM, begun=False)
    assert str(early) == "stopped by SIGTERM before anything was trained or scored"
    assert early.status == 143
