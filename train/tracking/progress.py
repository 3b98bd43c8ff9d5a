"""The line that tells a person how a run is doing: tqdm's bar in a terminal, one line an interval everywhere.

The lines that stay go to the log, so a file or a notebook gets them alone, without a bar. In a terminal the
log is written above the bar for as long as the line is open.
"""

from __future__ import annotations

import logging
import time
from contextlib import ExitStack
from typing import Any, TextIO

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

logger = logging.getLogger(__name__)

BAR = "step {n_fmt}/{total_fmt} |{bar:20}| {remaining} left{postfix}"


class ProgressLine:
    """Steps `first`..`total` of a run. `stream` is where a live bar may go; None or a file: no bar."""

    def __init__(self, first: int, total: int, stream: TextIO | None) -> None:
        self.first, self.total = first, total
        self.since = time.monotonic()
        self.bar: tqdm | None = None
        self._open = ExitStack()
        if stream is not None and stream.isatty():
            self._open.enter_context(logging_redirect_tqdm())
            bar = tqdm(  # the mean speed since the start (smoothing 0) counts evaluations in
                total=total, initial=first, file=stream, bar_format=BAR, dynamic_ncols=True, leave=False,
                smoothing=0,
            )  # fmt: skip
            self.bar = self._open.enter_context(bar)

    def restart(self) -> None:
        """The steps begin now: what came before, such as a first evaluation, says nothing about the rest."""
        self.since = time.monotonic()
        if self.bar is not None:
            self.bar.reset()
            self.bar.n = self.first

    def step(self, taken: int) -> None:
        """Move the bar; the figures in it are those of the last interval."""
        if self.bar is not None:
            self.bar.update(taken - self.bar.n)

    def interval(self, taken: int, figures: dict[str, Any]) -> None:
        """New figures: a line that stays."""
        pieces = describe(figures)
        if self.bar is not None:
            self.bar.set_postfix_str("  ".join(pieces), refresh=False)
        left = []
        if taken > self.first:
            seconds = (time.monotonic() - self.since) / (taken - self.first) * (self.total - taken)
            left = [f"{tqdm.format_interval(seconds)} left"]
        logger.info("%s", "  ".join([f"step {taken}/{self.total}", *pieces, *left]))

    def clear(self) -> None:
        """Take the bar away until the next step: something that is no step is being done."""
        if self.bar is not None:
            self.bar.clear()

    def close(self) -> None:
        """Take the bar away for good, and give the log back its place."""
        self._open.close()
        self.bar = None


def describe(figures: dict[str, Any]) -> list[str]:
    """The figures of an interval that a person looks at, with their units."""
    return [
        f"loss {figures['loss']:.4f}",
        f"lr {figures['lr']:.3g}",
        f"grad norm {figures['grad_norm']:.3g}",
        f"{figures['images_per_s']:.1f} images/s",
        f"waiting for data {100 * figures['wait_share']:.0f} %",
    ]
