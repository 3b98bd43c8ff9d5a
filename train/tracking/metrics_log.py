"""What a run says about itself: `metrics.jsonl`, one JSON object a line. Reading it needs no torch.

Lines of a run that is continued from an earlier step are cut off first: they will be written anew.
"""

from __future__ import annotations

import json
import logging
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maskshards.shards.storage.atomic_write import naming, replacing
from maskshards.shards.storage.foreign_file import open_regular
from maskshards.train.checkpoint.run_files import METRICS
from maskshards.train.checkpoint.train_state import strict_json

if TYPE_CHECKING:
    from maskshards.train.distributed.ranks import Ranks

logger = logging.getLogger(__name__)

MOST_LINE_BYTES = 1 << 20  # ours have a few hundred
TEXTS = ("kind", "order")  # all else in a line is a number


class MetricsFile:
    """Appends to `RUN/metrics.jsonl`; on ranks other than the first it writes nothing."""

    def __init__(self, run: Path, ranks: Ranks, first_step: int) -> None:
        self.path, self.ranks = run / METRICS, ranks
        self.records = [record for record in read_metrics(self.path) if record["step"] <= first_step]
        self._on_first(self._rewrite)

    def write(self, kind: str, step: int, **figures: Any) -> dict[str, Any]:
        """Append one line and return it; figures that are not finite become null.

        Every rank calls it, and all learn if the first cannot write.
        """
        record = {"kind": kind, "step": step, **figures}
        self.records.append(record)
        self._on_first(lambda: self._append(to_line(record)))
        return record

    def _on_first(self, work: Callable[[], None]) -> None:
        if self.ranks.is_first or self.ranks.control is not None:
            self.ranks.from_first(work)

    def _rewrite(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(self.path) as hidden:
            hidden.write_text("".join(to_line(record) for record in self.records), encoding="utf-8")

    def _append(self, line: str) -> None:
        with naming(self.path), open(self.path, "a", encoding="utf-8") as file:
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
    """The lines of a metrics file, oldest first, up to the first that a crash cut short or spoiled.

    A warning tells how many bytes are left out.
    """
    if not path.is_file():
        return []
    records: list[dict[str, Any]] = []
    with open_regular(path) as file:
        while line := file.readline(MOST_LINE_BYTES):
            record = to_record(line)
            if record is None:
                left_out = os.fstat(file.fileno()).st_size - file.tell() + len(line)
                where = f"{path}: line {len(records) + 1}"
                logger.warning("%s is no record; it and all after it are left out: %d bytes", where, left_out)
                break
            records.append(record)
    return records


def to_record(line: bytes) -> dict[str, Any] | None:
    """What `to_line` wrote: a kind, a step and figures; None for anything else."""
    try:
        record = strict_json(line.decode())
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or not isinstance(record.get("kind"), str):
        return None
    step = record.get("step")
    if type(step) is not int or not 0 <= step < 1 << 63:
        return None
    figures = [value for name, value in record.items() if not (name in TEXTS and isinstance(value, str))]
    return record if all(value is None or is_figure(value) for value in figures) else None


def is_figure(value: object) -> bool:
    return isinstance(value, int | float) and abs(value) <= sys.float_info.max
