"""A stop by signal, and those that come before a run's own handlers stand.

While the words are checked and torch is loaded SIGTERM and SIGUSR1 would end the process without a word.
Nothing is open then, so it says what came and ends at once: an exception could be lost in the import that it
came into.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)  # an interrupt is Python's own
AGAIN = "; the same command starts again"


class Stopped(Exception):
    """The run ended early because it was asked to; `number` is the signal's. `begun`: it may have trained or
    scored something.
    """

    def __init__(self, number: int, *, begun: bool = True) -> None:
        place = "" if begun else " before anything was trained or scored"
        super().__init__(f"stopped by {signal.Signals(number).name}{place}")
        self.number, self.begun = number, begun

    @property
    def status(self) -> int:
        """The exit status of a process that ends by it."""
        return 128 + self.number


@contextmanager
def stops_told() -> Iterator[None]:
    """Inside, SIGTERM and SIGUSR1 end the process with one line on stderr and 128 + the signal. In a thread
    of somebody's program signals are the program's.
    """
    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, end_process) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def end_process(number: int, frame: FrameType | None) -> None:
    """The handler. Buffers are left alone: the signal may have come in the middle of a write."""
    stopped = Stopped(number, begun=False)
    os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"{stopped}{AGAIN}\n".encode())
    os._exit(stopped.status)
