"""How long each phase of a step takes, by CUDA events on a GPU and by the clock elsewhere.

The events make nothing wait inside a step. A measured step looks at numbers and draws none, so it is the same
step as one that nobody measures.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from maskshards.train.model.segmenter import Segmenter

HOST_PHASE = "wait"  # for data: the host waits, the device may not, so this one is always read off the clock


class PhaseClock:
    """Marks in a stream of work. `mark(phase)` ends what began at the mark before; `start` begins a step."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._steps: list[list[tuple[str, Any]]] = []
        self._waited_s: list[float] = []

    def start(self) -> None:
        self._steps.append([("", self._now())])
        self._waited_s.append(0.0)

    def mark(self, phase: str) -> None:
        self._steps[-1].append((phase, self._now()))

    def wait_for(self, call: Callable[[], Any]) -> Any:
        """`call()`, its time on the host counted as waiting for data."""
        since = time.perf_counter()
        result = call()
        self._waited_s[-1] += time.perf_counter() - since
        self.mark(HOST_PHASE)
        return result

    def medians_ms(self, warmup: int) -> dict[str, float]:
        """Median milliseconds of each phase and of the whole `step`, over the steps after `warmup`. Waits."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        steps = [self._spans(i) for i in range(warmup, len(self._steps))]
        if not steps:
            raise ValueError(f"no step to measure: {len(self._steps)} taken, {warmup} of them to warm up")
        return {phase: statistics.median(step[phase] for step in steps) for phase in steps[0]}

    def _spans(self, number: int) -> dict[str, float]:
        marks = self._steps[number]
        spans: dict[str, float] = {}
        for (_, begin), (phase, end) in itertools.pairwise(marks):
            spans[phase] = spans.get(phase, 0.0) + self._between_ms(begin, end)
        if HOST_PHASE in spans:
            spans[HOST_PHASE] = 1000 * self._waited_s[number]
        spans["step"] = self._between_ms(marks[0][1], marks[-1][1])
        return spans

    def _now(self) -> Any:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _between_ms(self, begin: Any, end: Any) -> float:
        return float(begin.elapsed_time(end)) if self.device.type == "cuda" else 1000 * (end - begin)


def mark_after(clock: PhaseClock, modules: dict[str, nn.Module]) -> Callable[[], None]:
    """Have each module's forward end a phase of its name; returns a call that takes the hooks off again."""

    def hook(name: str) -> Callable[..., None]:
        return lambda *_: clock.mark(name)

    handles = [module.register_forward_hook(hook(name)) for name, module in modules.items()]

    def remove() -> None:
        for handle in handles:
            handle.remove()

    return remove


def phase_modules(segmenter: Segmenter) -> dict[str, nn.Module]:
    """The modules whose forward ends a phase, by the phase's name, in the order in which they run.

    Empty where steps are replayed: a mark would be recorded with them; all up to the loss is one phase then.
    """
    if segmenter.replayed:
        return {}
    return {"backbone": segmenter.backbone, **segmenter.decoder.phases()}


class StepPhases:
    """Times single steps of a run, as many as are asked for; the others pass as if it were not there.

    The loop marks what it does itself; hooks on the model's parts mark the rest, and stand for one step only.
    They sit outside what torch.compile takes and inside what DistributedDataParallel wraps.
    """

    def __init__(self) -> None:
        self._clock: PhaseClock | None = None  # of the step under way
        self._finished: PhaseClock | None = None

    @contextmanager
    def timed(self, segmenter: Segmenter, device: torch.device, now: bool) -> Iterator[None]:
        """Around one step, which is timed if `now`."""
        if not now:
            yield
            return
        self._clock = clock = PhaseClock(device)
        first = segmenter.backbone.register_forward_pre_hook(lambda *_: clock.mark("crop"))
        if segmenter.replayed:
            first.remove()
        remove_hooks = mark_after(clock, phase_modules(segmenter))
        clock.start()
        try:
            yield
            self._finished = clock
        finally:
            first.remove()
            remove_hooks()
            self._clock = None

    def mark(self, phase: str) -> None:
        """End a phase, if this step is timed."""
        if self._clock is not None:
            self._clock.mark(phase)

    def wait_for(self, call: Callable[[], Any]) -> Any:
        """`call()`, its time counted as waiting for data if this step is timed."""
        return call() if self._clock is None else self._clock.wait_for(call)

    def take(self) -> dict[str, float]:
        """Milliseconds by `PHASE_ms` of the step timed last, once; empty if there was none.

        Waits for the device, so it is for where figures of the device are fetched anyhow.
        """
        clock, self._finished = self._finished, None
        spans = {} if clock is None else clock.medians_ms(0)
        return {f"{phase.replace(' ', '_')}_ms": value for phase, value in spans.items()}
