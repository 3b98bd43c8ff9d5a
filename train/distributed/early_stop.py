"""A stop by signal, and those that come before a run's own handlers stand.

While the words are checked and torch is loaded SIGTERM, SIGUSR1 and SIGHUP would end the process without a
word. Nothing is open then, so it says what came and ends at once: an exception could be lost in the import
that it came into.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)  # an interrupt is Python's own
AGAIN = "; the same command starts again"


class Stopped(Exception):
    """The run ended early because it was asked to; `number` is the signal's.

    `begun`: it may have trained or scored something.
    """

    def __init__(self, number: int, *, begun: bool = True) -> None:
        place = "" if begun else " before anything was trained or scored"
        super().__init__(f"stopped by {signal.Signals(number).name}{place}")
        self.number, self.begun = number, begun

    @property
    def status(self) -> int:
        """The exit status of a process that ends by it."""
        return 128 + self.number


def heard(numbers: Iterable[signal.Signals]) -> list[signal.Signals]:
    """Those of `numbers` that a run obeys: all, but SIGHUP where nohup has it ignored."""
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return [number for number in numbers if not (ignored and number == signal.SIGHUP)]


@contextmanager
def stops_told() -> Iterator[None]:
    """Inside, each of SIGNALS ends the process with one line on stderr and 128 + the signal.

    In a thread of somebody's program signals are the program's.
    """
    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, end_process) for number in heard(SIGNALS)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def end_process(number: int, frame: FrameType | None) -> None:
    """The handler. Buffers are left alone: the signal may have come in the middle of a write."""
    stopped = Stopped(number, begun=False)
    with suppress(OSError):  # a terminal that is closed
        os.write(2, f"{stopped}{AGAIN}\n".encode())
    os._exit(stopped.status)
