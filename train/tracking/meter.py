"""The figures of a stretch of steps.

Losses and norms stay on the device until a line is due: here alone training waits for them.
"""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from torch import Tensor

from maskshards.train.distributed.ranks import Ranks


class Meter:
    """Sums of a stretch of steps: losses, gradient norms, clipped and skipped steps, images, waiting time.

    A step whose gradient is not finite was not taken: it counts as skipped and in no mean.
    """

    def __init__(self, clip_norm: float) -> None:
        self.clip_norm = clip_norm
        self.restart()

    def restart(self) -> None:
        """Forget all, and count from now on."""
        self.sums: dict[str, Tensor] = {}
        self._step: dict[str, Tensor] = {}  # of the step under way
        self.steps = self.images = 0
        self.wait_ms = 0.0
        self.since = time.monotonic()

    def add(self, name: str, value: Tensor | float) -> None:
        """A part of the step under way; parts of one name are summed."""
        self._step[name] = self._step[name] + value if name in self._step else torch.as_tensor(value)

    def add_step(self, norm: Tensor, images: int, wait_ms: float) -> None:
        """End a step: the gradient's norm before clipping, its images, the wait for them."""
        taken = torch.isfinite(norm)
        figures = self._step | {"grad_norm": norm, "clipped": (norm > self.clip_norm).float()}
        for name, value in figures.items():
            counted = torch.where(taken.to(value.device), value, torch.zeros_like(value))
            self.sums[name] = self.sums[name] + counted if name in self.sums else counted
        skipped = (~taken).float()
        self.sums["skipped"] = self.sums["skipped"] + skipped if "skipped" in self.sums else skipped
        self._step = {}
        self.steps += 1
        self.images += images
        self.wait_ms += wait_ms

    def take(self, ranks: Ranks) -> dict[str, Any]:
        """Means over the steps that were taken and all ranks, null where none was; then a fresh start.

        They come with how many steps there were (`steps`: fewer than a full stretch after a start or a
        resume) and how many of them were skipped. Every rank calls it at the same step.
        """
        seconds = time.monotonic() - self.since
        names = sorted(self.sums)
        values = torch.stack([self.sums[name].to(ranks.device, torch.float64) for name in names])
        sums = dict(zip(names, (ranks.sum(values) / ranks.world.num_ranks).tolist(), strict=True))
        skipped = round(sums.pop("skipped"))
        taken = self.steps - skipped
        figures: dict[str, Any] = {name: value / taken if taken else math.nan for name, value in sums.items()}
        figures["steps"], figures["skipped"] = self.steps, skipped
        figures["images_per_s"] = self.images * ranks.world.num_ranks / max(seconds, 1e-9)
        figures["wait_share"] = self.wait_ms / 1000 / max(seconds, 1e-9)
        figures["seconds"] = seconds
        self.restart()
        return figures
