"""Work done ahead by threads, handed over in order.

Threads, not processes: reading, checksums, zstd and JPEG decoding all run outside the interpreter lock, and a
batch that stays in this process is neither copied nor pickled. Measured at twice the speed of worker
processes.

Ctrl-C is an exception that Python raises between any two steps of the main thread, and that it prints and
forgets where the step belongs to the collecting of an object. Halfway through `threading.Thread.start` or
`threading.Event.set` it leaves a lock for which the end of the program waits for ever. So nothing of ours
runs while an iterator is collected: a built-in function notes it for a thread, which ends the others. Threads
are started, and what tasks wait for is ended, by threads, in which no Ctrl-C is raised. And a wait is one
step, on a lock of the interpreter's own.
"""

from __future__ import annotations

import _thread
import atexit
import os
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from queue import SimpleQueue
from typing import Any, Generic, Protocol, TypeVar

LOOK_UP_S = 0.1
MOST_THREADS = 1024  # of one reader, and results that wait: more is a slip, which would take the memory
MOST_AHEAD = 4096


class _Closable(Protocol):
    def close(self) -> None: ...


_open: dict[weakref.ref[_Closable], None] = {}


def close_at_exit(what: _Closable) -> None:
    """Close it when the program ends, if nobody has.

    Before the interpreter waits for threads, and before a forgotten iterator is collected among modules that
    are half gone.
    """
    _open[weakref.ref(what, _open.pop)] = None


def _close_open() -> None:
    for kept in list(_open):
        if (what := kept()) is not None:
            what.close()


# As concurrent.futures itself does: atexit's turn comes only after all threads have ended.
getattr(threading, "_register_atexit", atexit.register)(_close_open)

Task = TypeVar("Task")
Result = TypeVar("Result")


class _Job(Generic[Task, Result]):
    """A task on its way through a thread; `under_way` is locked until it has come out."""

    __slots__ = ("error", "result", "task", "under_way")
    result: Result

    def __init__(self, task: Task) -> None:
        self.task = task
        self.error: BaseException | None = None
        self.under_way = threading.Lock()
        self.under_way.acquire()


class InOrder(Generic[Task, Result]):
    """`work` of each task, in the order of the tasks; at most `num_ahead` results wait or are in work.

    An error of a task is raised in its turn. `interrupt` ends what tasks wait for. Threads start when the
    first results are asked for, and end, each after the task in hand, when the last one was given, at any
    error, or when the iterator is dropped. `close` ends them from any thread, and waits until they have.
    """

    def __init__(
        self,
        tasks: Iterable[Task],
        work: Callable[[Task], Result],
        num_threads: int,
        num_ahead: int,
        interrupt: Callable[[], None] = lambda: None,
    ) -> None:
        self._tasks, self._work, self._interrupt = iter(tasks), work, interrupt
        self._num_threads, self._num_ahead = num_threads, num_ahead
        self._pending: deque[_Job[Task, Result]] = deque()
        self._queue: SimpleQueue[_Job[Task, Result] | None] = SimpleQueue()
        self._dropped: SimpleQueue[Any] = SimpleQueue()  # references to iterators that are gone; None at last
        self._listener: weakref.ref[Any] | None = None
        self._threads: list[threading.Thread] = []
        self._starting = threading.Lock()
        self._process, self._closed = os.getpid(), False
        close_at_exit(self)

    def __iter__(self) -> Results[Result]:
        results = Results(self)
        self._listener = weakref.ref(results, self._dropped.put)
        return results

    def next(self) -> Result:
        """The next result; StopIteration at the end and once closed. RuntimeError in a forked child."""
        if self._process != os.getpid():
            raise RuntimeError(
                "this iteration began before a fork and its threads are the parent's; iterate anew"
            )
        try:
            self._hand_over()
            if self._pending:
                return self._outcome(self._pending.popleft())
        except BaseException as error:
            was_closed = self._closed
            self.close()
            if was_closed and isinstance(error, Exception):  # what is left of a task that was ended
                raise StopIteration from None
            raise
        self.close()
        raise StopIteration

    def _hand_over(self) -> None:
        while not self._closed and len(self._pending) <= self._num_ahead:
            task = next(self._tasks, self)
            if task is self:
                return
            job: _Job[Task, Result] = _Job(task)  # type: ignore[arg-type]
            self._pending.append(job)
            self._queue.put(job)
            if not self._threads:
                self._start(self._await_end)
            if len(self._threads) <= self._num_threads:
                self._start(self._serve)

    def _start(self, what: Callable[[], None]) -> None:
        # Told `daemon`, it asks nothing of the thread that starts it, of which Python would keep a record.
        thread = threading.Thread(target=what, name=f"maskshards_{len(self._threads)}", daemon=False)
        outcome: SimpleQueue[Exception | None] = SimpleQueue()
        _thread.start_new_thread(self._start_unless_closed, (thread, outcome))
        if (error := outcome.get()) is not None:
            raise error

    def _start_unless_closed(self, thread: threading.Thread, outcome: SimpleQueue[Exception | None]) -> None:
        """In a thread of its own."""
        try:
            with self._starting:
                if not self._closed:
                    thread.start()
                    self._threads.append(thread)
            outcome.put(None)
        except Exception as error:  # no more threads, or no memory for one
            outcome.put(error)

    def _outcome(self, job: _Job[Task, Result]) -> Result:
        # In short waits: a signal that another thread took does not end a wait without limit, and Ctrl-C
        # would not come through before the result does.
        while not job.under_way.acquire(timeout=LOOK_UP_S):
            if self._closed:
                raise StopIteration
        if self._closed:
            raise StopIteration
        if job.error is not None:
            error, job.error = job.error, None  # a job that holds its error would be a cycle by way of frames
            raise error
        return job.result

    def _serve(self) -> None:
        """A thread that works."""
        while (job := self._queue.get()) is not None:
            try:
                if not self._closed:
                    job.result = self._work(job.task)
            except BaseException as error:  # raised in its turn
                job.error = error
            job.under_way.release()
            del job  # its result is not to be kept while the thread waits
        self._queue.put(None)  # for the next thread

    def _await_end(self) -> None:
        """A thread that does not work, since those that do may be waiting for a network; it ends them."""
        while (gone := self._dropped.get()) is not None and gone is not self._listener:
            pass
        self._closed = True
        self._pending.clear()
        self._queue.put(None)
        self._interrupt()
        for thread in self._begun():
            while thread is not threading.current_thread() and thread.is_alive():
                thread.join(LOOK_UP_S)
                if thread.is_alive():  # its task may have been between two waits
                    self._interrupt()

    def ready(self) -> bool:
        """Whether the next result is there, so that asking for it waits for nothing."""
        try:
            return not self._pending[0].under_way.locked()
        except IndexError:
            return False

    def close(self) -> None:
        """Drop the tasks that nobody works on, end what the others wait for, and wait for their end."""
        self._closed = True
        self._pending.clear()
        # A forked child has no threads; at the interpreter's end they are gone already, and so are the
        # modules that `interrupt` needs.
        if self._process != os.getpid() or sys.is_finalizing():
            return
        self._dropped.put(None)
        threads = self._begun()
        if not threads:
            self._interrupt()
        for thread in threads:
            while thread.is_alive():
                thread.join(LOOK_UP_S)

    def _begun(self) -> list[threading.Thread]:
        """All threads, once it is closed: none is being started."""
        with self._starting:
            threads = list(self._threads)
        return threads


class Results(Iterator[Result]):
    """What the consumer holds: the results, and nothing that has to be done when it is dropped."""

    __slots__ = ("__weakref__", "_source")

    def __init__(self, source: InOrder[Any, Result]) -> None:
        self._source = source

    def __next__(self) -> Result:
        return self._source.next()

    def close(self) -> None:
        """Give no more, and wait for the tasks in hand to end."""
        self._source.close()


def in_order(
    tasks: Iterable[Task],
    work: Callable[[Task], Result],
    num_threads: int,
    num_ahead: int,
    interrupt: Callable[[], None] = lambda: None,
) -> Results[Result]:
    """The results of `InOrder`, for who only iterates over them."""
    return iter(InOrder(tasks, work, num_threads, num_ahead, interrupt))
