"""The next batch is cropped, and goes through the frozen backbone, while the host waits for this one.

A step waits for the device once, for the matching costs, and then solves the assignment; on a GPU nothing
would be queued meanwhile. Crops and frozen features depend on no trained weight, so those of the next batch
fill the gap. The numbers are the same as without, for each batch is a function of its samples alone; a
training state counts finished steps, so what was prepared and not used is made again after a restart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

Batch = TypeVar("Batch")
Ready = TypeVar("Ready")


class Lookahead(Generic[Batch, Ready]):
    """Iterates over `batches`; those that `meanwhile` was called for before their turn come prepared.

    `at_hand` tells whether the next batch would be had without waiting for it: none is prepared otherwise,
    for the step under way is not to wait for data. An error of reading or preparing is raised in its turn.
    """

    def __init__(
        self, batches: Iterator[Batch], prepare: Callable[[Batch], Ready], at_hand: Callable[[], bool]
    ) -> None:
        self._batches, self._prepare, self._at_hand = batches, prepare, at_hand
        self._next: Ready | None = None
        self._failure: Exception | None = None

    def __iter__(self) -> Iterator[Batch | Ready]:
        return self

    def __next__(self) -> Batch | Ready:
        ready, failure = self._next, self._failure
        self._next = self._failure = None
        if failure is not None:
            raise failure
        return next(self._batches) if ready is None else ready

    def meanwhile(self) -> None:
        """Prepare the next batch, if it is at hand and not prepared yet."""
        if self._next is not None or self._failure is not None or not self._at_hand():
            return
        try:
            self._next = self._prepare(next(self._batches))
        except Exception as error:  # told when its turn comes: this step can still be finished, and saved
            self._failure = error
