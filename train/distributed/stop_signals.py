"""Signals that ask a run to end: noted when they come, obeyed between two steps.

SIGTERM (kill, Kubernetes, torchrun), SIGINT (Ctrl-C), SIGUSR1 (Slurm's warning before the time limit) and
SIGHUP (a terminal that is closed, unless nohup has it ignored) let the step in hand be finished and saved.
SIGINT again, two seconds later or more, interrupts at once (torchrun passes the first Ctrl-C on, so every
process sees that one twice). While the ranks still join, nothing is in hand, and the first signal ends the
wait.

A signal may reach one rank alone, or several at different moments. So no rank ends by itself: all of them ask
each other at the same places, and then end together.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

from maskshards.train.distributed.early_stop import Stopped, heard
from maskshards.train.distributed.ranks import Ranks

PATIENCE_S = 2.0
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)


class LeftEarly(Exception):
    """This rank was asked to end; the others may not know yet."""


class StopSignals:
    """A context manager that notes the first of SIGNALS in `number`, and restores the handlers.

    `number` is 0 until then. `joining`: until `noted` is entered the first signal raises Stopped at once.
    """

    def __init__(self, *, joining: bool = False) -> None:
        self.number = 0
        self._joining = joining
        self._since = 0.0
        self._previous: dict[int, object] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is not threading.main_thread():
            return self  # a training in a thread of somebody's program: signals are the program's
        for number in heard(SIGNALS):
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Inside, signals are noted; afterwards the handlers are those of before.

        A run's process groups are left outside of it, after the run has ended.
        """
        self._joining = False
        try:
            yield
        finally:
            self._restore()

    def _restore(self) -> None:
        while self._previous:
            number, handler = self._previous.popitem()
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if number == signal.SIGINT and self.number and now - self._since > PATIENCE_S:
            raise KeyboardInterrupt
        if not self.number:
            self.number, self._since = number, now
            if self._joining:
                raise Stopped(number, begun=False)

    def check(self, ranks: Ranks, *, begun: bool = True) -> None:
        """Raise Stopped on every rank if a signal has come to any.

        Every rank calls it at the same place. `begun`: as Stopped takes it.
        """
        if number := ranks.any(self.number):
            raise Stopped(number, begun=begun)

    def leave(self) -> None:
        """Raise LeftEarly if a signal has come to this rank; for long work that may simply be dropped.

        Whoever catches it goes on to the next place where all ranks `check`.
        """
        if self.number:
            raise LeftEarly
