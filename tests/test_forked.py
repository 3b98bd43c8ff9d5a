"""Forked programs behave as those that subprocess starts."""

import os
import signal
from pathlib import Path

from tests import forked
from tests.forked import ForkedPython

PROGRAM = """
import os, sys
print("torch" in sys.modules, "maskshards" in sys.modules, sys.argv, os.environ["X"])
print(os.getcwd(), sys.stdin.read() == "", __name__, file=sys.stderr)
sys.exit(7)
"""


def test_words_environment_folder_both_pipes_and_the_status(tmp_path: Path) -> None:
    done = forked.run(["-c", PROGRAM, "a", "b c"], env={**os.environ, "X": "1"}, cwd=tmp_path)
    assert done.stdout == "True False ['-c', 'a', 'b c'] 1\n"
    assert done.stderr == f"{tmp_path} True __main__\n"
    assert done.returncode == 7


def test_a_module_of_the_folder_or_of_pythonpath_is_run(tmp_path: Path) -> None:
    for place in ("here", "there"):
        (tmp_path / place).mkdir()
        (tmp_path / place / f"{place}.py").write_text("import sys; print(__name__, sys.argv[1:])")
    for module in ("here", "there"):
        env = {**os.environ, "PYTHONPATH": str(tmp_path / "there")}
        assert forked.run(["-m", module, "x"], env=env, cwd=tmp_path / "here").stdout == "__main__ ['x']\n"


def test_a_fault_is_a_traceback_and_status_1() -> None:
    done = forked.run(["-c", "1 / 0"], env=dict(os.environ))
    assert done.returncode == 1
    assert done.stderr.endswith("ZeroDivisionError: division by zero\n")


def test_what_is_left_at_the_end_is_done_and_a_text_is_an_exit_status_of_1() -> None:
    code = "import atexit, sys; atexit.register(print, 'left'); print('first', end=' '); sys.exit('why')"
    done = forked.run(["-c", code], env=dict(os.environ))
    assert (done.stdout, done.stderr, done.returncode) == ("first left\n", "why\n", 1)


def test_signals_reach_it_and_one_that_ends_it_is_its_status() -> None:
    code = "import signal; print('ready', flush=True); signal.pause()"
    with ForkedPython(["-c", code], env=dict(os.environ)) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait() == -signal.SIGTERM
        process.kill()  # nothing is left to kill


def test_the_server_has_one_thread() -> None:
    """A lock that another thread held would be held for ever in a fork."""
    code = "import os; print(len(os.listdir(f'/proc/{os.getppid()}/task')), os.environ['OMP_NUM_THREADS'])"
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    assert forked.run(["-c", code], env=env).stdout == "1 1\n"
