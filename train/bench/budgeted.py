"""Parts run one after another within a budget: each one's figures are safe before the next begins.

A part that no longer fits is skipped, an exception stays inside its part, and a part that hangs past the
budget ends the process, with everything that came before it on disk.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

import torch

Figures = dict[str, Any]  # what a part found, as JSON can hold it

DONE, SKIPPED, FAILED, ABSENT = "done", "skipped", "failed", "not here"
OVERTIME_EXIT = 3  # the process's code when a part ran past the budget and would not stop


class NotHere(RuntimeError):
    """This machine, or what was given, lacks what a part needs; the message says what."""


@dataclass(frozen=True)
class Part:
    """One piece of work. `needs_s`: it is skipped where less of the budget is left."""

    name: str
    needs_s: float
    measure: Callable[[], Figures]


@dataclass(frozen=True)
class Result:
    """What became of a part."""

    part: str
    status: str
    seconds: float
    figures: Figures = field(default_factory=dict)
    reason: str = ""  # why there are no figures


class Budget:
    """Seconds on the clock, counted from when it is made."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self._since = seconds, time.monotonic()

    def left_s(self) -> float:
        return self.seconds - (time.monotonic() - self._since)


class Journal:
    """One JSON object a line in `path`, on disk after every part."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.results = path, list[Result]()

    def add(self, result: Result) -> None:
        self.results.append(result)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(result)) + "\n")
            file.flush()
            os.fsync(file.fileno())


def run_parts(parts: Sequence[Part], budget: Budget, journal: Journal, stream: TextIO = sys.stderr) -> None:
    """Run what fits, in order; one line a part goes to `said`. Ctrl-C ends the part in hand and the rest."""
    broken = ""
    for part in parts:
        if broken:
            result = Result(part.name, SKIPPED, 0.0, reason=broken)
        elif budget.left_s() < part.needs_s:
            reason = f"{budget.left_s():.0f} s of the budget are left, it may need {part.needs_s:.0f}"
            result = Result(part.name, SKIPPED, 0.0, reason=reason)
        else:
            result = attempt(part)
            if result.status == FAILED and not device_answers():
                broken = f"the device answers no more after {part.name!r}"
        journal.add(result)
        line = f"{part.name}: {result.status} in {result.seconds:.1f} s {result.reason}"
        stream.write(line.rstrip() + "\n")
        stream.flush()
        if result.reason == KeyboardInterrupt.__name__:
            return


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


def end_after(seconds: float, last_words: Callable[[], None]) -> threading.Timer:
    """End the process once `seconds` are over, `last_words` before; cancel it when the work is done."""

    def end() -> None:
        last_words()
        sys.stdout.flush()
        os._exit(OVERTIME_EXIT)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    return timer
