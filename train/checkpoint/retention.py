"""Which checkpoints of a run stay: the newest few and the archive.

A run that goes on below a damaged checkpoint must neither take it for its newest nor lose it: it is set aside
under `left-behind-*`, a name that is never given twice.
"""

from __future__ import annotations

from itertools import count
from pathlib import Path

from maskshards.shards.storage.atomic_write import flush_folder
from maskshards.train.checkpoint.checkpoint import discard
from maskshards.train.checkpoint.run_files import BEST, FOLDER, LAST, checkpoints_of, step_of

LEFT_BEHIND = "left-behind-"  # before the name of what a continued run no longer counts


def prune(run: Path, keep_last: int, archive_interval: int | None) -> None:
    """Remove all but the newest `keep_last` continuable checkpoints and multiples of `archive_interval`.

    What cannot be removed is tried again at the next call.
    """
    for path in checkpoints_of(run, LAST)[:-keep_last]:
        if archive_interval is None or step_of(path) % archive_interval:
            discard(path)


def set_aside(run: Path, step: int) -> list[Path]:
    """Rename the run's checkpoints above `step`, where it goes on; returns the new paths."""
    moved = []
    # Newest first: a kill in the middle then leaves no hole below what counts as newest.
    for path in (*reversed(checkpoints_of(run, LAST)), *checkpoints_of(run, BEST)):
        if step_of(path) > step:
            moved.append(path.rename(unused(path.with_name(f"{LEFT_BEHIND}{path.name}"))))
    if moved:
        flush_folder(run / FOLDER)
    return moved


def unused(path: Path) -> Path:
    """`path`, or the first of `path.2`, `path.3`, ... that is not there yet."""
    names = (path if number == 1 else path.with_name(f"{path.name}.{number}") for number in count(1))
    return next(name for name in names if not name.exists())
