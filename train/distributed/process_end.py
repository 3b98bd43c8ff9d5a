"""How a process ends when others, or threads of its own, would keep it: with its last words, and in time."""

from __future__ import annotations

import atexit
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from maskshards.train.distributed.early_stop import Stopped
from maskshards.train.distributed.lost_ranks import LostRankError

logger = logging.getLogger(__name__)

GRACE_S = 10.0  # for a process to end by itself once its launch has to
FAULT = 2  # exit status


def say(words: str, name: str = "stderr") -> None:
    """Write a line to a standard stream.

    One that nobody reads any more, such as that of a closed terminal, is left alone from then on: it changes
    no exit status.
    """
    try:
        getattr(sys, name).write(f"{words}\n")
        getattr(sys, name).flush()
    except OSError:
        setattr(sys, name, open(os.devnull, "w"))


def last_words(words: str) -> None:
    """Say on stderr why this process ends, and to torchrun, whose own account of the ranks comes after it."""
    say(words)
    place = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if place is None:
        return
    try:
        Path(place).write_text(
            json.dumps({"message": words, "timestamp": int(time.time())}), encoding="utf-8"
        )
    except OSError as error:
        logger.debug("torchrun is not told: %s", error)


@contextmanager
def ended_at_last(error: BaseException) -> Iterator[None]:
    """Inside, a process leaves its group after `error`; it is ended should that take longer than GRACE_S.

    It ends with the error's words: gloo waits for messages of ranks that were stopped, whoever destroys the
    group. Where ranks were lost the interpreter's end would wait for them too, and is cut short.
    """
    if isinstance(error, LostRankError):
        atexit.register(cut_short)
    timer = threading.Timer(GRACE_S, end_process, [str(error) or type(error).__name__, status_of(error)])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def end_process(words: str, status: int = FAULT) -> None:
    """End this process now, after `words`, from whichever thread."""
    last_words(f"error: {words}")
    os._exit(status)


def status_of(error: BaseException) -> int:
    """The exit status of a process that ends by `error` while it joins."""
    return error.status if isinstance(error, Stopped) else FAULT


def cut_short(status: int = FAULT) -> None:
    """End without what destroys objects of C++."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
