"""Parts run one after another within a budget: each one's figures are safe before the next begins.

A part that no longer fits is skipped and an exception stays inside its part. What no exception tells, a part
that hangs or ends the process, is for the process that watches this one (`restarts`).
"""

from __future__ import annotations

import gc
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import torch

from maskshards.train.bench.journal import ABSENT, DONE, FAILED, SKIPPED, Figures, Journal, Result

HANGS_AFTER = (60.0, 2.0)  # seconds, and so many times what a part may need


class NotHere(RuntimeError):
    """This machine, or what was given, lacks what a part needs; the message says what."""


@dataclass(frozen=True)
class Part:
    """One piece of work. `needs_s`: it is skipped where less of the budget is left."""

    name: str
    needs_s: float
    measure: Callable[[], Figures]


class Budget:
    """Seconds on the clock, counted from when it is made."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self._since = seconds, time.monotonic()

    def left_s(self) -> float:
        return self.seconds - (time.monotonic() - self._since)


def run_parts(parts: Sequence[Part], budget: Budget, journal: Journal, stream: TextIO = sys.stderr) -> bool:
    """Run what fits and is not in the journal, in order; one line a part goes to `stream`.

    Ctrl-C ends the part in hand and the rest. False once the device answers no more: the rest needs another
    process.
    """
    first_s, times = HANGS_AFTER
    for part in parts:
        if journal.has(part.name):
            continue
        answers = True
        journal.begin(part.name, first_s + times * part.needs_s if part.needs_s else None)
        if budget.left_s() < part.needs_s:
            reason = f"{budget.left_s():.0f} s of the budget are left, it may need {part.needs_s:.0f}"
            result = Result(part.name, SKIPPED, 0.0, reason=reason)
        else:
            result = attempt(part)
            answers = result.status != FAILED or device_answers()
        journal.add(result)
        line = f"{part.name}: {result.status} in {result.seconds:.1f} s {result.reason}"
        stream.write(line.rstrip() + "\n")
        stream.flush()
        if result.reason == KeyboardInterrupt.__name__:
            return True
        if not answers:
            return False
    return True


def attempt(part: Part) -> Result:
    """The part's figures, or why there are none; device memory that it left behind is freed."""
    since = time.monotonic()
    figures: Figures = {}
    try:
        figures, status, reason = part.measure(), DONE, ""
    except NotHere as error:
        status, reason = ABSENT, str(error)
    except KeyboardInterrupt:
        status, reason = FAILED, KeyboardInterrupt.__name__
    except Exception as error:  # whatever it is, the parts behind it still have something to tell
        status, reason = FAILED, told(error)
    free_memory()
    return Result(part.name, status, time.monotonic() - since, figures, reason)


def told(error: Exception) -> str:
    """Type, message and the innermost three lines of code, in one line."""
    frames = traceback.extract_tb(error.__traceback__)[-3:]
    where = " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(frames))
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]} ({where})"


def free_memory() -> None:
    """Collect what cycles keep alive and give cached device memory back."""
    gc.collect()
    if torch.cuda.is_available():
        try:
            torch.cuda.empty_cache()
        except RuntimeError:  # after a fault in a kernel every call fails; `device_answers` tells
            return


def device_answers() -> bool:
    """Whether CUDA still works in this process; True where there is none."""
    if not torch.cuda.is_available():
        return True
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True
