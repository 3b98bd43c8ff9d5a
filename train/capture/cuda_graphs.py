"""Work that is queued call by call at first, and then as a recorded CUDA graph: one launch for all of it.

A graph repeats the kernels that it recorded on the places in memory that they had. So what is recorded may
read nothing of the host, must have the same shapes whatever the values, and keeps its inputs in fixed places.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

import torch
from torch import Tensor

Work = Callable[[], None]
WARMUP_ROUNDS = 2  # that run as they stand: libraries choose algorithms, kernels are compiled and loaded


class CaptureError(RuntimeError):
    """A step that cannot be recorded, or that was given other sizes than it was recorded for."""


class Graphs(Protocol):
    """What records."""

    @abstractmethod
    def beside(self) -> AbstractContextManager[None]:
        """Work queued in it runs where recordings run, behind and before all that is outside."""

    @abstractmethod
    def record(self, work: Work) -> Work:
        """What repeats `work`, which is not done by this call. CaptureError if it cannot be."""


class CudaGraphs(Graphs):
    """Recordings on one device that are replayed in their order, never at once, and share their memory."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    @contextmanager
    def beside(self) -> Iterator[None]:
        outside = torch.cuda.current_stream(self.device)
        self._stream.wait_stream(outside)
        with torch.cuda.stream(self._stream):
            yield
        outside.wait_stream(self._stream)

    def record(self, work: Work) -> Work:
        graph = torch.cuda.CUDAGraph()
        try:
            # Reading threads pin memory meanwhile, which only a capture of this thread alone allows.
            with torch.cuda.graph(
                graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
            ):
                work()
        except RuntimeError as error:
            raise CaptureError(
                f"the step cannot be recorded as CUDA graphs ({' '.join(str(error).split())[:300]}); "
                "compile_mode=default trains without them"
            ) from error
        return graph.replay


class Recorded:
    """Works in their order, round by round: WARMUP_ROUNDS as they stand, then recorded, all at once.

    `graphs` None: they always run as they stand.
    """

    def __init__(self, graphs: Graphs | None, works: Sequence[Work]) -> None:
        self._graphs, self._works = graphs, works
        self._replays: list[Work] = []
        self._rounds = 0

    def begin(self) -> None:
        """Before the first work of a round: record them if it is time."""
        if self._graphs is not None and not self._replays and self._rounds >= WARMUP_ROUNDS:
            self._replays = [self._graphs.record(work) for work in self._works]
        self._rounds += 1

    def run(self, number: int) -> None:
        """The next work of this round, or its replay."""
        if self._replays:
            self._replays[number]()
        elif self._graphs is None:
            self._works[number]()
        else:
            with self._graphs.beside():
                self._works[number]()


class Places:
    """Tensors that stay where they are, by name; `put` copies into them what a round works on."""

    def __init__(self) -> None:
        self._tensors: dict[str, Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def put(self, name: str, value: Tensor) -> None:
        """CaptureError for a value of another shape or type than the first one of this name."""
        place = self._tensors.get(name)
        if place is None:
            place = self._tensors[name] = torch.empty_like(value)
        if place.shape != value.shape or place.dtype != value.dtype:
            raise CaptureError(
                f"{name} is {tuple(value.shape)} {value.dtype}, but the step was recorded for "
                f"{tuple(place.shape)} {place.dtype}: compile_mode=graph takes crops and batches of one size"
            )
        place.copy_(value, non_blocking=True)
