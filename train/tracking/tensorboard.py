"""Every figure of a run as a TensorBoard scalar, in `RUN/tensorboard`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from maskshards.train.checkpoint.run_files import BOARDS

NOT_SCALARS = ("kind", "step")


class TensorBoardFile:
    """One event file; the numbers of a metrics record become `KIND/NAME`, visible at once.

    A run that continues after `first_step` steps takes later ones anew: readers are told to forget what
    former files say of them, so that each step is shown once, like in metrics.jsonl.
    """

    def __init__(self, run: Path, first_step: int = 0) -> None:
        from torch.utils.tensorboard import SummaryWriter  # slow to import, and only the first rank writes

        self._writer = SummaryWriter(str(run / BOARDS), purge_step=first_step + 1)

    def record(self, record: dict[str, Any]) -> None:
        """Write the finite numbers of one line of metrics.jsonl."""
        for name, value in record.items():
            if name not in NOT_SCALARS and isinstance(value, int | float) and math.isfinite(value):
                self._writer.add_scalar(f"{record['kind']}/{name}", float(value), record["step"])
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
