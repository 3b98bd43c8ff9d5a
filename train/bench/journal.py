"""What became of the parts of a benchmark, on disk after each: whatever ends the process, its figures stay.

Needs no torch: the process that watches the measuring one reads and writes it too.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from maskshards.shards.storage.atomic_write import replacing
from maskshards.shards.storage.foreign_file import read_text

Figures = dict[str, Any]  # what a part found, as JSON can hold it

DONE, SKIPPED, FAILED, ABSENT = "done", "skipped", "failed", "not here"


@dataclass(frozen=True)
class Result:
    """What became of a part."""

    part: str
    status: str
    seconds: float
    figures: Figures = field(default_factory=dict)
    reason: str = ""  # why there are no figures


class Journal:
    """One JSON object a line in `path`, and in a file beside it the part in hand."""

    def __init__(self, path: Path, anew: bool = True) -> None:
        self.path, self.now, self.results = path, path.with_suffix(".now"), list[Result]()
        if anew:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("", encoding="utf-8")
            self.begin("", None)
        self.reread()

    def reread(self) -> None:
        """Take what stands in the file, up to a line that was cut short."""
        self.results = []
        for line in read_text(self.path).splitlines() if self.path.exists() else ():
            try:
                self.results.append(Result(**json.loads(line)))
            except (ValueError, TypeError):
                return

    def begin(self, part: str, limit_s: float | None) -> None:
        """Say which part is in hand, and after how many seconds it counts as hanging (None: never)."""
        with replacing(self.now) as hidden:
            hidden.write_text(json.dumps([part, limit_s]), encoding="utf-8")

    def in_hand(self) -> tuple[str, float | None]:
        """The part that was begun and of which nothing is known yet, '' for none; its limit, seconds."""
        if not self.now.exists():
            return "", None
        part, limit_s = json.loads(self.now.read_text(encoding="utf-8"))
        self.reread()
        return ("", None) if self.has(part) else (part, limit_s)

    def has(self, part: str) -> bool:
        return any(result.part == part for result in self.results)

    def add(self, result: Result) -> None:
        """Append a line, safe on disk when this returns."""
        self.results.append(result)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(result)) + "\n")
            file.flush()
            os.fsync(file.fileno())
