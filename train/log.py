"""What a run says about itself: `metrics.jsonl`, one JSON object a line, and the figures that go into it.

Losses and norms stay on the device until a line is due, so this module is the one place where training waits
for figures. Lines of a run that is continued from an earlier step are cut off first: they will be written
anew.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from train.checkpoint import replacing
from train.distributed import Ranks

METRICS = "metrics.jsonl"


class MetricsFile:
    """Appends to `RUN/metrics.jsonl`; on ranks other than the first it writes nothing."""

    def __init__(self, run: Path, ranks: Ranks, first_step: int) -> None:
        self.path, self.ranks = run / METRICS, ranks
        self.records = [record for record in read_metrics(self.path) if record["step"] <= first_step]
        self._on_first(self._rewrite)

    def write(self, kind: str, step: int, **figures: Any) -> dict[str, Any]:
        """Append one line and return it; figures that are not finite become null. Every rank calls it, and
        all learn if the first cannot write.
        """
        record = {"kind": kind, "step": step, **figures}
        self.records.append(record)
        self._on_first(lambda: self._append(to_line(record)))
        return record

    def _on_first(self, work: Callable[[], object]) -> None:
        if self.ranks.is_first or self.ranks.control is not None:
            self.ranks.from_first(lambda: str(work()))

    def _rewrite(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(self.path) as hidden:
            hidden.write_text("".join(to_line(record) for record in self.records), encoding="utf-8")

    def _append(self, line: str) -> None:
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(line)

    def has(self, kind: str, step: int) -> bool:
        return any(record["kind"] == kind and record["step"] == step for record in self.records)


def to_line(record: dict[str, Any]) -> str:
    plain = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in record.items()
    }
    return json.dumps(plain, allow_nan=False) + "\n"


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file, oldest first; a last line that a crash cut short is left out."""
    if not path.is_file():
        return []
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            break
    return records


class Meter:
    """Sums of a stretch of steps: losses, gradient norms, clipped steps, images, time spent waiting."""

    def __init__(self, clip_norm: float) -> None:
        self.clip_norm = clip_norm
        self.sums: dict[str, Tensor] = {}
        self.steps = self.images = 0
        self.wait_ms = 0.0
        self.since = time.monotonic()

    def add(self, name: str, value: Tensor | float) -> None:
        self.sums[name] = self.sums[name] + value if name in self.sums else torch.as_tensor(value)

    def add_step(self, norm: Tensor, images: int, wait_ms: float) -> None:
        """One optimiser step: the gradient's norm before clipping, its images, the wait for them."""
        self.add("grad_norm", norm)
        self.add("clipped", (norm > self.clip_norm).float())
        self.steps += 1
        self.images += images
        self.wait_ms += wait_ms

    def take(self, ranks: Ranks) -> dict[str, Any]:
        """Means over the stretch and all ranks, and a fresh start. Every rank calls it at the same step."""
        seconds = time.monotonic() - self.since
        names = sorted(self.sums)
        values = torch.stack([self.sums[name].to(ranks.device, torch.float64) for name in names])
        means = (ranks.sum(values) / (ranks.world.num_ranks * max(self.steps, 1))).tolist()
        figures: dict[str, Any] = dict(zip(names, means, strict=True))
        figures["images_per_s"] = self.images * ranks.world.num_ranks / max(seconds, 1e-9)
        figures["wait_share"] = self.wait_ms / 1000 / max(seconds, 1e-9)
        figures["seconds"] = seconds
        self.__init__(self.clip_norm)  # type: ignore[misc]
        return figures
