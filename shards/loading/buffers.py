"""Memory of batches, given out again once nobody refers to it.

New pages are cleared by the kernel and cost a fault each, which was a twelfth of the loader's time. That a
buffer is free is told by a weak reference whose callback is a built-in function: nothing of ours runs where a
consumer drops a batch. Pinned memory is kept by torch itself.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

SMALLEST = 1 << 16  # bytes; less is quickly had from malloc
MOST_IDLE = 12  # buffers that wait for use; more come back where a consumer had kept many batches
MOST_ROOM = 2  # times what is asked for: a small batch is not to hold a large one's memory


class Buffers:
    """Flat tensors of bytes. May be asked from several threads."""

    def __init__(self, pin: bool = False) -> None:
        self._pin, self._lock = pin, threading.Lock()
        self._lent: dict[int, tuple[Any, NDArray[np.uint8]]] = {}  # by id of the reference
        self._back: deque[Any] = deque()  # references to what was dropped
        self._idle: deque[NDArray[np.uint8]] = deque(maxlen=MOST_IDLE)  # longest idle first

    def empty(self, num_bytes: int) -> torch.Tensor:
        """(num_bytes,) uint8 with anything in it, its consumer's alone for as long as he refers to it."""
        if self._pin or num_bytes < SMALLEST:
            return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=self._pin)
        with self._lock:
            while self._back:
                self._idle.append(self._lent.pop(id(self._back.popleft()))[1])
            buffer = self._fitting(num_bytes)
            part = buffer[:num_bytes]  # a tensor of it, and all views of that, keep this object alive
            reference = weakref.ref(part, self._back.append)
            self._lent[id(reference)] = reference, buffer
        return torch.from_numpy(part)

    def _fitting(self, num_bytes: int) -> NDArray[np.uint8]:
        fitting = [each for each in self._idle if num_bytes <= len(each) <= MOST_ROOM * num_bytes]
        if not fitting:
            return np.empty(num_bytes + num_bytes // 4, np.uint8)  # batches of one stream differ in size
        found = min(fitting, key=len)
        for place, each in enumerate(self._idle):
            if each is found:
                del self._idle[place]
                break
        return found
