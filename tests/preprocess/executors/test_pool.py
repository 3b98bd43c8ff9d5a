import multiprocessing
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from maskshards.preprocess.errors import BuildError
from maskshards.preprocess.executors import pool
from maskshards.preprocess.executors.pool import run_tasks, warm_pool


def square(number):
    return os.getpid(), number * number


def stumble(number):
    if number == 3:
        raise OSError(28, "No space left on device", "/somewhere/shard")
    return number


def object_to(number):
    raise ValueError(f"{number} is not acceptable")


def divide(number):
    return 1 // number


def crash(number):
    os.kill(os.getpid(), signal.SIGSEGV)


def die(number):
    os.kill(os.getpid(), signal.SIGKILL)


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_every_task_is_done_once(workers):
    outcomes = list(run_tasks(square, range(7), workers))
    assert sorted(value for _, value in outcomes) == [number * number for number in range(7)]
    pids = {pid for pid, _ in outcomes}
    assert (pids == {os.getpid()}) if workers == 1 else (os.getpid() not in pids and len(pids) <= workers)
    assert workers == 1 or not any(alive(pid) for pid in pids)


def test_no_tasks_no_workers():
    assert list(run_tasks(square, [], 3)) == []


def test_errors_keep_their_kind_and_text():
    with pytest.raises(OSError, match="No space left on device: /somewhere/shard") as caught:
        list(run_tasks(stumble, range(8), 2))
    assert caught.value.errno == 28
    with pytest.raises(BuildError, match="0 is not acceptable"):
        list(run_tasks(object_to, [0], 2))


def test_a_worker_that_is_killed_is_noticed():
    with pytest.raises(BuildError, match=r"signal 9 while it worked on 7, out of memory.*goes on from there"):
        list(run_tasks(die, [7], 2))
    with pytest.raises(BuildError, match=r"signal 11 while it worked on 7; a decoder.*among those of 7"):
        list(run_tasks(crash, [7], 2))


def test_a_fault_of_the_program_is_told_with_its_place():
    with pytest.raises(BuildError, match=r"(?s)0: a fault of this program.*ZeroDivisionError"):
        list(run_tasks(divide, [0], 2))


def test_leaving_early_stops_the_workers():
    tasks = run_tasks(square, range(1000), 2)
    pid, _ = next(tasks)
    assert alive(pid)
    tasks.close()
    assert not alive(pid)


@pytest.mark.parametrize("workers", [0, -2, 10**9])
def test_how_many_workers_there_may_be(workers):
    with pytest.raises(BuildError, match=f"--workers is {workers}; expected 1 to"):
        list(run_tasks(square, [1], workers))
    with pytest.raises(BuildError, match="expected 1 to"):
        warm_pool(square, workers)  # before it is entered


PARENT = """
import os, select
from maskshards.preprocess.executors.pool import run_tasks, warm_pool

def hold(task):
    \"\"\"Say who it is through a pipe that stays open as long as the worker lives, and say so if it outlives
    its parent: the kernel kills before it tells of the parent's end.\"\"\"
    pipe, parent = os.open(os.environ["PIPE"], os.O_WRONLY), os.pidfd_open(os.getppid())
    os.write(pipe, f"{os.getpid()} ".encode())
    select.select([parent], [], [])
    os.write(pipe, b"outlived")

if __name__ == "__main__":
    list(run_tasks(hold, range(2), 2))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of its parent's death")
def test_workers_in_the_middle_of_a_task_die_with_their_parent(tmp_path):
    """A parent that is killed can end nobody: the kernel does."""
    (tmp_path / "parent.py").write_text(PARENT)
    os.mkfifo(tmp_path / "pipe")
    pipe = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    environment = os.environ | {"PIPE": str(tmp_path / "pipe")}
    pids = b""
    with subprocess.Popen([sys.executable, str(tmp_path / "parent.py")], env=environment) as parent:
        try:
            while pids.count(b" ") < 2:
                assert parent.poll() is None
                select.select([pipe], [], [], 1)
                pids += os.read(pipe, 99) if select.select([pipe], [], [], 0)[0] else b""
        finally:
            parent.kill()
    try:
        os.set_blocking(pipe, True)
        ended = select.select([pipe], [], [], 600)[0]  # readable without data: no writer is left
        assert ended
        assert os.read(pipe, 99) == b""
    finally:
        for pid in pids.split():
            if Path(f"/proc/{pid.decode()}").exists():
                os.kill(int(pid), signal.SIGKILL)
        os.close(pipe)


def test_workers_are_there_before_the_first_task():
    with warm_pool(square, 3) as run:
        workers = {process.pid for process in multiprocessing.active_children()}
        assert len(workers) == 3
        outcomes = list(run(square, range(9)))
    assert sorted(value for _, value in outcomes) == [number * number for number in range(9)]
    assert {pid for pid, _ in outcomes} <= workers
    assert not any(alive(pid) for pid in workers)


@pytest.mark.parametrize("patience_s", [pool.PATIENCE_S, 0.0])
def test_a_pool_that_gets_no_task_ends_its_workers(monkeypatch, patience_s):
    """Those too that are importing still when it has waited long enough."""
    monkeypatch.setattr(pool, "PATIENCE_S", patience_s)
    with warm_pool(square, 2) as run:
        workers = [process.pid for process in multiprocessing.active_children()]
        assert list(run(square, [])) == []
    assert not any(alive(pid) for pid in workers)
