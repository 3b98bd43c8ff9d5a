"""All that looks at a step and changes nothing about it, wrapped around it as one object.

Phases are timed, the other ranks are told where this one is, figures are summed, the order of the data is
hashed, and the guard learns of a gradient that is not finite. Numbers stay on the device until a line of the
log fetches them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from maskshards.shards.batch import RaggedBatch
from maskshards.train.distributed.ranks import Ranks
from maskshards.train.model.segmenter import Segmenter
from maskshards.train.tracking.data_order import OrderChain, order_digest, wrapped
from maskshards.train.tracking.meter import Meter
from maskshards.train.tracking.phase_timer import StepPhases
from maskshards.train.trainer.diagnosis import Seen
from maskshards.train.trainer.guards import Guard
from maskshards.train.trainer.step import Losses, Prepared


class Instruments:
    """Of one process. `meter`, `phases` and `order` are read where lines and checkpoints are written."""

    def __init__(self, ranks: Ranks, guard: Guard, clip_norm: float, order: OrderChain | None = None) -> None:
        self.ranks, self.guard = ranks, guard
        self.meter, self.phases, self.order = Meter(clip_norm), StepPhases(), order or OrderChain()
        self._step = 0
        self._seen: list[Seen] = []  # micro-steps of the step under way
        self._digest = 0
        self._images = 0
        self._waited_ms = 0.0

    @contextmanager
    def around(self, step: int, segmenter: Segmenter, *, timed: bool) -> Iterator[None]:
        """Around the whole of one step."""
        self._step, self._seen, self._digest, self._images, self._waited_ms = step, [], 0, 0, 0.0
        self.guard.begin_step()
        with self.phases.timed(segmenter, self.ranks.device, now=timed):
            yield
        self.ranks.at(step, "between steps")

    def next_batch(self, batches: Iterator[RaggedBatch | Prepared]) -> RaggedBatch | Prepared:
        """The next batch, with the time that it was waited for."""
        since = time.monotonic()
        self.ranks.at(self._step, "waiting for data")
        batch = self.phases.wait_for(lambda: next(batches))
        self.ranks.at(self._step, "computing", waits=True)
        self._waited_ms += 1000 * (time.monotonic() - since)
        self._images += len(batch)
        return batch

    def read_ahead(self, batches: Iterator[RaggedBatch]) -> RaggedBatch:
        """The next batch, for a pass that counts in no figure."""
        self.ranks.doing("waiting for data")
        batch = next(batches)
        self.ranks.doing("computing", waits=True)
        return batch

    @property
    def flag(self) -> Tensor | None:
        """What the first loss of a step brings to the host: whether the step before was finite."""
        return None if self._seen else self.guard.flag

    def losses_known(self, losses: Losses, weight: float) -> None:
        """Before a micro-step's backward pass. `weight`: its part of the step.

        The guard learns of the step before, whose gradients still stand. NonFiniteError as it says.
        """
        self.phases.mark("loss")
        if not self._seen:
            self.guard.resolve(losses.flag_on_host)
        total = losses.total.detach()
        self._seen.append(Seen(losses.crops, total))
        self._digest = wrapped(self._digest + order_digest(losses.crops, losses.draws))
        for name, value in {"loss": total, **{f"loss_{k}": part for k, part in losses.parts.items()}}.items():
            self.meter.add(name, value * weight)

    def gradients_known(self) -> None:
        """After a micro-step's backward pass. GuardError if a parameter received no gradient."""
        self.phases.mark("backward")
        self.guard.after_backward()

    def norm_known(self, norm: Tensor) -> None:
        """Between clip and update; `norm` is the gradient's before clipping."""
        self.guard.watch(self._step, norm, self._seen)
        self.meter.add_step(norm, self._images, self._waited_ms)

    def updated(self) -> None:
        """After the update."""
        self.phases.mark("optimiser")
        self.order.add(self._digest)
