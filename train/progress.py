"""The line that tells a person how a run is doing: redrawn in a terminal, one line an interval elsewhere."""

from __future__ import annotations

import logging
import time
from typing import Any, TextIO

logger = logging.getLogger(__name__)

CLEAR = "\r\x1b[K"


class ProgressLine:
    """Steps `first`..`total` of a run. `stream` is where a live line may go; None or a file: no live line."""

    def __init__(self, first: int, total: int, stream: TextIO | None) -> None:
        self.first, self.total = first, total
        self.live = stream if stream is not None and stream.isatty() else None
        self.figures: dict[str, Any] = {}
        self.since = time.monotonic()

    def step(self, taken: int) -> None:
        """Redraw the live line; the figures in it are those of the last interval."""
        if self.live is not None:
            self.live.write(CLEAR + self.text(taken))
            self.live.flush()

    def interval(self, taken: int, figures: dict[str, Any]) -> None:
        """New figures: a line that stays."""
        self.figures = figures
        self.clear()
        logger.info("%s", self.text(taken))

    def clear(self) -> None:
        """Take the live line away, before something else is written."""
        if self.live is not None:
            self.live.write(CLEAR)
            self.live.flush()

    def text(self, taken: int) -> str:
        pieces = [f"step {taken}/{self.total}"]
        if self.figures:
            found = self.figures
            pieces += [
                f"loss {found['loss']:.4f}",
                f"lr {found['lr']:.3g}",
                f"grad norm {found['grad_norm']:.3g}",
                f"{found['images_per_s']:.1f} images/s",
                f"waiting for data {100 * found['wait_share']:.0f} %",
            ]
        if taken > self.first:
            left = (time.monotonic() - self.since) / (taken - self.first) * (self.total - taken)
            pieces.append(f"{clock(left)} left")
        return "  ".join(pieces)


def clock(seconds: float) -> str:
    """Hours, minutes and seconds as h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
