"""Trying again what a network may have spoiled: a bounded number of times, later each time, never in step.

The delay doubles and is scattered at random, so that a hundred readers whom one server threw out do not come
back at the same moment. That chance touches when a byte is fetched and nothing else.
"""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from maskshards.shards.errors import StoreError, UnreachableError

log = logging.getLogger(__name__)

Result = TypeVar("Result")

LONG_S = 5.0  # a wait that somebody who looks on should know of
MOST_ASKED_S = 60.0  # between two attempts, whatever a server asks for


@dataclass(frozen=True, slots=True)
class RetrySettings:
    """How long to be patient."""

    attempts: int = 6
    first_delay_s: float = 0.5  # before the second attempt; doubles from then on
    longest_delay_s: float = 20.0
    stall_s: float = 20.0  # without a byte arriving
    total_s: float = 120.0  # for one request, beyond the time that its bytes take at `slowest_bytes_per_s`
    slowest_bytes_per_s: float = 100_000.0


PATIENT = RetrySettings()


class Transient(Exception):
    """A failure that may pass: a connection cut, a server stalled or busy, which asks for `wait_s`."""

    def __init__(self, what: str, wait_s: float = 0.0) -> None:
        super().__init__(what)
        self.wait_s = wait_s


def delays(settings: RetrySettings, scatter: Callable[[], float]) -> list[float]:
    """Seconds to wait between attempts; `scatter` gives numbers in [0, 1), which take away up to half."""
    doubled = (settings.first_delay_s * 2**number for number in range(settings.attempts - 1))
    return [min(delay, settings.longest_delay_s) * (1 - scatter() / 2) for delay in doubled]


def with_retries(
    attempt: Callable[[], Result], what: str, settings: RetrySettings, stopped: threading.Event
) -> Result:
    """The result of `attempt`, tried again while it raises Transient; UnreachableError naming `what` at last.

    Setting `stopped` ends the waiting at once, with a StoreError.
    """
    pauses = [*delays(settings, random.random), None]
    for number, pause in enumerate(pauses, 1):
        try:
            return attempt()
        except Transient as failure:
            if stopped.is_set():
                raise StoreError(f"{what}: {failure}; the store was closed meanwhile") from failure
            if pause is None:
                raise UnreachableError(
                    f"{what}: {failure}, {number} attempts in all; is the server well?"
                ) from failure
            pause = max(pause, min(failure.wait_s, MOST_ASKED_S))
            tell = log.warning if pause >= LONG_S else log.info
            tell("%s: %s; attempt %d follows in %.1f s", what, failure, number + 1, pause)
            if stopped.wait(pause):
                raise StoreError(f"{what}: {failure}; the store was closed meanwhile") from failure
    raise AssertionError("unreachable: the last attempt returns or raises")
