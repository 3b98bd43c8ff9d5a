"""Where a stream stands, in batches of one rank counted from position 0, and which of them come next.

The parent of a DataLoader's worker processes moves the place (`set_epoch`, `load_state_dict`); workers read
it from shared memory each time that they begin, so that persistent ones follow too. What a worker itself has
handed out only it knows: much of that may be read ahead and never be used.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from itertools import count
from typing import Any, NamedTuple

import torch
from torch.utils.data import get_worker_info

log = logging.getLogger(__name__)

NEXT, EXACT, READ_BY_WORKERS = range(3)  # cells of the shared memory


class Share(NamedTuple):
    """Which batches one iteration reads: first, first + stride, ..., below stop."""

    first: int
    stride: int
    stop: int | None

    def numbers(self) -> Iterable[int]:
        """Their numbers."""
        if self.stop is None:
            return count(self.first, self.stride)
        return range(self.first, self.stop, self.stride)


class Place:
    """The next batch of a stream of passes of `per_pass` batches (None: one without end), up to `end`."""

    def __init__(self, number: int, micro_steps: int, per_pass: int | None, end: int | None) -> None:
        self._micro_steps, self._per_pass, self._end = micro_steps, per_pass, end
        self._origin = number
        self._memory = torch.tensor([number, 0, -1])
        self._worker: tuple[int, int] | None = None  # (number, how many) while a worker process iterates
        self._share: Share | None = None  # of the worker's iteration
        self._given = 0  # batches that the worker has handed out of it
        self._loaded: Share | None = None  # where the worker's next iteration begins, from a state
        self._open()

    def _open(self) -> None:
        if not self._memory.is_shared():
            try:
                self._memory.share_memory_()
            except RuntimeError as error:  # nowhere to put it; then a DataLoader's workers cannot run either
                log.debug("no shared memory: %s", error)
        self._cells = self._memory.numpy()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_cells"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    @property
    def next(self) -> int:
        """The number of the batch to be handed out next, in a worker the next of its own."""
        if self._share is not None:
            return self._share.first + self._given * self._share.stride
        return int(self._cells[NEXT])

    def begin(self) -> Share:
        """What a new iteration reads: from the last whole step on, or exactly where a state left off."""
        start = int(self._cells[NEXT])
        if not self._cells[EXACT]:
            start -= start % self._micro_steps
        info = get_worker_info()
        if info is None:
            self._cells[NEXT], self._cells[EXACT] = start, 0
            return Share(start, 1, self._stop_of(start))
        if info.id == 0 and self._loaded is None and self._cells[READ_BY_WORKERS] == start:
            log.warning(
                "a DataLoader's workers begin at batch %d again, in the same order and with the same random "
                "numbers; before each iteration call set_epoch(epoch) on the Loader if it has epochs=, or "
                "load_state_dict(loader.state_dict(after=the last batch))",
                start,
            )
        own = Share(start + info.id, info.num_workers, self._stop_of(start))
        self._share, self._loaded = self._loaded or own, None
        self._worker, self._given = (info.id, info.num_workers), 0
        self._start = start
        return self._share

    def handed_out(self) -> None:
        """Count one batch of the running iteration."""
        if self._share is not None:
            self._given += 1
            if self._worker is not None and self._worker[0] == 0:
                self._cells[READ_BY_WORKERS] = self._start
        else:
            self._cells[NEXT] += 1

    def pass_length(self) -> int:
        """Batches of a whole pass; TypeError for a stream without end."""
        if self._per_pass is None:
            if self._end is None:
                raise TypeError("an endless Loader has no length; give it epochs= or end=")
            return max(0, self._end - self._origin)
        if self._end is None:
            return self._per_pass
        start = max(0, min(self.next, self._end - 1)) // self._per_pass * self._per_pass
        return min(self._per_pass, self._end - start)

    def go_to_pass(self, number: int) -> bool:
        """Whether the place was moved to the beginning of this pass; it is not if it lies inside."""
        if self._per_pass is None or int(self._cells[NEXT]) // self._per_pass == number:
            return False
        self._cells[NEXT], self._cells[EXACT] = number * self._per_pass, 0
        return True

    def go_to(self, number: int, state: dict[str, Any]) -> None:
        """Continue with batch `number`, or with what the state of a worker says, in that worker alone."""
        info = get_worker_info()
        if "worker" in state:
            place = (state["worker"], state["num_workers"])
            if info is None or (info.id, info.num_workers) != place:
                raise ValueError(
                    f"this is the state of worker {place[0]} of {place[1]} of a DataLoader; load the "
                    f"state of the whole StatefulDataLoader into one with num_workers={place[1]}"
                )
            stop = None if state["stop_batch"] < 0 else state["stop_batch"]
            self._share = self._loaded = Share(state["next_batch"], info.num_workers, stop)
            self._worker, self._given = place, 0
        elif info is not None:
            self._loaded = Share(number + info.id, info.num_workers, self._stop_of(number))
        else:
            self._cells[NEXT], self._cells[EXACT] = number, 1

    def worker_state(self) -> dict[str, int]:
        """In a worker process what `go_to` needs beside the number, else nothing."""
        if self._worker is None or self._share is None:
            return {}
        stop = -1 if self._share.stop is None else self._share.stop
        return {
            "worker": self._worker[0],
            "num_workers": self._worker[1],
            "next_batch": self.next,
            "stop_batch": stop,
        }

    def _stop_of(self, start: int) -> int | None:
        """Where the pass that holds batch `start` ends."""
        stops = [] if self._end is None else [self._end]
        if self._per_pass is not None:
            stops.append((start // self._per_pass + 1) * self._per_pass)
        return min(stops, default=None)
