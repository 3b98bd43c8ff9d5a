"""Batches moved to the device ahead of their use, on a stream of their own.

On CUDA the copy of the next batches overlaps the work on the current one: each batch's copies are queued on a
side stream as soon as the batch is read, the consumer's stream waits for them by an event, and the host waits
for nothing. On other devices the batches pass through with no read-ahead. Pinned batches (Loader(pin=True))
are what makes the copies overlap; without pinning they are correct but the host waits for them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

import torch

from maskshards.shards.batch import FLAT, RaggedBatch
from maskshards.shards.loading.ordered_map import MOST_AHEAD
from maskshards.shards.order.order import whole_number


class DevicePrefetcher:
    """Iterates over `batches` with each one on `device`; up to `in_flight` are copied or being copied.

    A batch that is there is handed out before the source is waited for, if the source can tell (`ready()`, as
    Loader's). An error of the source is raised in its turn, after the batches before it. The source is asked
    for up to `in_flight` batches more than were handed out: a training state must count finished steps, not
    batches read.
    """

    def __init__(
        self, batches: Iterable[RaggedBatch], device: torch.device | str, in_flight: int = 2
    ) -> None:
        self.batches, self.device = batches, torch.device(device)
        self.in_flight = whole_number(in_flight, "in_flight", 1, MOST_AHEAD)
        self._moving: deque[tuple[RaggedBatch, torch.cuda.Event]] = deque()

    def __iter__(self) -> Iterator[RaggedBatch]:
        if self.device.type != "cuda":
            return (batch.to(self.device) for batch in self.batches)
        return self._ahead()

    def _ahead(self) -> Iterator[RaggedBatch]:
        stream = torch.cuda.Stream(self.device)
        source = iter(self.batches)
        self._moving = moving = deque[tuple[RaggedBatch, torch.cuda.Event]]()
        failure: Exception | None = None
        more = True
        while True:
            while more and len(moving) < self.in_flight and (not moving or self._ready()):
                try:
                    moving.append(self._start(source, stream))
                except StopIteration:
                    more = False
                except Exception as error:
                    if not moving:
                        raise
                    failure, more = error, False
            if not moving:
                if failure is not None:
                    raise failure
                return
            yield self._finish(*moving.popleft())

    def at_hand(self) -> bool:
        """Whether the next batch of the newest iterator would come without waiting for the source."""
        return bool(self._moving) or self._ready()

    def _ready(self) -> bool:
        """Whether the source has its next batch at hand; True of one that cannot tell."""
        ready = getattr(self.batches, "ready", None)
        return True if ready is None else bool(ready())

    def _start(
        self, source: Iterator[RaggedBatch], stream: torch.cuda.Stream
    ) -> tuple[RaggedBatch, torch.cuda.Event]:
        """Queue the next batch's copies.

        The host allocator keeps pinned memory from reuse until they have read it.

        The source is asked on the side stream as well, so that one which decodes on the device does it there.
        """
        with torch.cuda.stream(stream):
            moved = next(source).to(self.device, non_blocking=True)
            copied = torch.cuda.Event()
            copied.record(stream)
        return moved, copied

    def _finish(self, moved: RaggedBatch, copied: torch.cuda.Event) -> RaggedBatch:
        consumer = torch.cuda.current_stream(self.device)
        consumer.wait_event(copied)
        for name in FLAT:
            # The memory belongs to the side stream, which may reuse it only once the consumer is done too.
            getattr(moved, name).record_stream(consumer)
        return moved
