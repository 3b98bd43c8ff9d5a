"""Work that may never answer, waited for in looks; and what torch says of its own failures, made plain.

A store whose server was stopped (SIGSTOP, a node that hangs) takes a question and never answers, whatever
timeout the store was given. So such questions are asked in a thread of their own, for which the end of the
process does not wait.
"""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

Answer = TypeVar("Answer")

LOOK = timedelta(seconds=1)  # in waits, between looks at whether there is still somebody to wait for
# "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] ", "[enforce fail at ../pair.cc:553] "
PLACE = re.compile(r"^\[[^\]]*\.(?:cc|cpp|h|hpp):\d+\]\s*")
ADVICE = " This is typically caused by"  # gloo's, which ends in good wishes


class NotInTimeError(ConnectionError):
    """Work did not end in time; it goes on in its thread."""


def nothing() -> None:
    """For who has nothing to look at."""


def in_time(work: Callable[[], Answer], timeout: timedelta, look: Callable[[], object] = nothing) -> Answer:
    """What `work` answers, or its error; NotInTimeError after `timeout`.

    `look` is called meanwhile, and may raise. The time is counted in looks, so that a process that was itself
    stopped is not late.
    """
    answers: list[Answer] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            answers.append(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="bounded wait", daemon=True)
    thread.start()
    for _ in range(max(1, math.ceil(timeout / LOOK))):
        thread.join(min(LOOK, timeout).total_seconds())
        if errors:
            raise errors[0]
        if answers:
            return answers[0]
        look()
    raise NotInTimeError(f"no answer within {timeout.total_seconds():.0f} s")


def plain_words(error: BaseException, limit: int = 200) -> str:
    """The first line of an error of torch, without the places of its sources."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return PLACE.sub("", lines[0]).split(ADVICE)[0][:limit]
