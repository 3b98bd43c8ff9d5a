"""Tasks on local worker processes that cannot outlive their parent and whose death is noticed at once.

The standard pools either wait for ever for a worker that was killed or cannot stop one in the middle of a
task. Here every worker has its own pipe and at most one task; the parent watches pipes and process handles
together, and stops all workers on the way out, whatever the way. Workers are spawned, not forked: no lock,
descriptor or thread state of the parent leaks in.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

from maskshards.preprocess.errors import BuildError
from maskshards.shards.process import die_with_parent

PER_CORE, LEAST_BOUND = 16, 64  # of workers: more are a slip; those that wait for a far disk need some
PATIENCE_S = 5.0  # for a stopped worker to remove its scratch file
CRASHES = (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGILL, signal.SIGFPE)
Task = TypeVar("Task")
Outcome = TypeVar("Outcome")


def run_tasks(do: Callable[[Task], Outcome], tasks: Iterable[Task], workers: int) -> Iterator[Outcome]:
    """Outcomes in the order in which tasks finish. With one worker everything happens in this process.

    `do` must be a module-level function. An OSError or ValueError of a task is raised here with its text,
    any other error and a worker that dies are a BuildError; then the remaining tasks are dropped.
    """
    with warm_pool(do, workers) as run:
        yield from run(do, tasks)


def warm_pool(
    do: Callable[[Task], Outcome], workers: int
) -> AbstractContextManager[Callable[..., Iterator[Outcome]]]:
    """A function of `do` and tasks, to be called once, whose workers start as the context is entered.

    They import what `do` needs as they start, so that they are ready when the caller has found out what there
    is to do.

    BuildError, here and now, for fewer than one worker, or so many that they would only use up the memory.
    """
    most = max(LEAST_BOUND, PER_CORE * (os.cpu_count() or 1))
    if not 1 <= workers <= most:
        raise BuildError(f"--workers is {workers}; expected 1 to {most} on {os.cpu_count()} cores")
    return _warm_pool(do, workers)


@contextmanager
def _warm_pool(do: Callable[[Task], Outcome], workers: int) -> Iterator[Callable[..., Iterator[Outcome]]]:
    if workers == 1:
        yield map
        return
    pool = _Pool(do, workers)
    try:
        pool.start()
        yield lambda _, tasks: pool.run(iter(tasks))
    finally:
        pool.stop()


class _Pool:
    def __init__(self, do: Callable[[Any], Any], workers: int) -> None:
        self.do = do
        self.workers = workers
        self.context = multiprocessing.get_context("spawn")
        self.processes: dict[Connection, BaseProcess] = {}
        self.tasks: dict[Connection, Any] = {}  # what each worker was given last

    def start(self) -> None:
        """Start all workers; they import what `do` needs and wait for a task."""
        for _ in range(self.workers):
            self._start()

    def run(self, tasks: Iterator[Task]) -> Iterator[Any]:
        """Hand a task to each worker, then the next one to whoever finishes."""
        for connection in list(self.processes):
            task = next(tasks, None)
            if task is None:
                self._retire(connection)
            else:
                self._hand(connection, task)
        while self.processes:
            for connection in self._ready():
                yield self._receive(connection)
                following = next(tasks, None)
                if following is None:
                    self._retire(connection)
                else:
                    self._hand(connection, following)

    def stop(self) -> None:
        """End every worker and wait until it is gone."""
        for process in self.processes.values():
            process.terminate()
        for connection, process in self.processes.items():
            _await_end(process)
            connection.close()
        self.processes.clear()

    def _start(self) -> Connection:
        ours, theirs = self.context.Pipe()
        process = self.context.Process(target=_serve, args=(theirs, self.do, os.getpid()), daemon=True)
        process.start()
        theirs.close()
        self.processes[ours] = process
        return ours

    def _ready(self) -> list[Connection]:
        """Connections with an outcome; BuildError if a worker ended without one."""
        sentinels = {process.sentinel: place for place, process in self.processes.items()}
        found = wait([*self.processes, *sentinels])
        ready = [connection for connection in self.processes if connection in found]
        for place in found:
            connection = sentinels.get(place) if isinstance(place, int) else None
            if connection is not None and not ready:
                raise self._death_of(connection)
        return ready

    def _hand(self, connection: Connection, task: Any) -> None:
        self.tasks[connection] = task
        try:
            connection.send(task)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise self._death_of(connection) from error

    def _receive(self, connection: Connection) -> Any:
        try:
            kind, value = connection.recv()
        except (EOFError, ConnectionResetError) as error:
            raise self._death_of(connection) from error
        if kind == "done":
            return value
        raise (OSError(*value) if kind == "OSError" else BuildError(*value))

    def _death_of(self, connection: Connection) -> BuildError:
        process = self.processes[connection]
        process.join(PATIENCE_S)
        return _death(process, str(self.tasks.get(connection, "")))

    def _retire(self, connection: Connection) -> None:
        connection.close()
        _await_end(self.processes[connection])
        del self.processes[connection]  # not before: an interrupt leaves it to `stop`


def _await_end(process: BaseProcess) -> None:
    """Wait for a worker that was told to end; kill one that does not, such as one that is importing still."""
    process.join(PATIENCE_S)
    if process.is_alive():
        process.kill()
        process.join()


def _death(process: BaseProcess, task: str) -> BuildError:
    code = process.exitcode
    killed = code is not None and code < 0
    how = f"was killed by signal {-(code or 0)}" if killed else f"ended with exit status {code}"
    why = ", out of memory perhaps" if code == -signal.SIGKILL else ""
    crash = code is not None and -code in CRASHES
    hint = f"; a decoder crashed: find the file with --workers 1 among those of {task}" if crash else ""
    return BuildError(
        f"worker process {process.pid} {how} while it worked on {task}{why}{hint}; finished shards are kept:"
        " the same command goes on from there"
    )


def _serve(connection: Connection, do: Callable[[Any], Any], parent: int) -> None:
    """A worker's life: take a task, answer, until the parent hangs up. Ctrl-C is the parent's business."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _leave)
    die_with_parent()
    while os.getppid() == parent:
        try:
            task = connection.recv()
        except EOFError:
            return
        try:
            answer: tuple[str, Any] = ("done", do(task))
        except OSError as error:
            answer = ("OSError", (error.errno, _text(error)) if error.errno else (str(error),))
        except ValueError as error:
            answer = ("BuildError", (str(error),))
        except MemoryError as error:
            answer = ("BuildError", (f"{task}: memory does not suffice ({error}); give fewer --workers",))
        except Exception as error:  # without this the worker would end, and its death name no reason
            trace = "".join(traceback.format_exception(error))
            answer = ("BuildError", (f"{task}: a fault of this program; please report it:\n{trace}",))
        connection.send(answer)


def _text(error: OSError) -> str:
    place = f": {error.filename}" if error.filename else ""
    return f"{error.strerror}{place}"


def _leave(number: int, frame: object) -> None:
    """Unwind, so that scratch files are removed."""
    raise SystemExit(128 + number)
