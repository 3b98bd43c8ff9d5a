"""Which checkpoints of a run stay: the newest few, the archive, and those of the branch that counts.

A run that is rolled back leaves its branch, and what it saved there must neither be taken for its newest nor
be lost: it is set aside under `left-behind-*`, a name that is never given twice.
"""

from __future__ import annotations

from itertools import count
from pathlib import Path

from maskshards.shards.storage.atomic_write import flush_folder
from maskshards.train.checkpoint.checkpoint import BEST, FOLDER, LAST, checkpoints_of, discard, step_of

LEFT_BEHIND = "left-behind-"  # before the name of what a continued run no longer counts


def prune(run: Path, keep_last: int, archive_interval: int | None) -> None:
    """Remove all but the newest `keep_last` continuable checkpoints and every multiple of
    `archive_interval`. What cannot be removed is tried again at the next call.
    """
    for path in checkpoints_of(run, LAST)[:-keep_last]:
        if archive_interval is None or step_of(path) % archive_interval:
            discard(path)


def is_of_run(path: Path, run: Path) -> bool:
    """Whether checkpoint `path` lies among those of `run`, left behind or not."""
    return path.resolve().parent == (run / FOLDER).resolve()


def is_left_behind(path: Path) -> bool:
    return path.name.startswith(LEFT_BEHIND)


def left_behind(run: Path) -> list[Path]:
    """What was set aside so far."""
    return sorted((run / FOLDER).glob(f"{LEFT_BEHIND}*"))


def set_aside(run: Path, step: int, source: Path) -> list[Path]:
    """Rename the run's checkpoints that do not lead to `source`, which is at `step`; returns the new paths.

    What is continued at `step` writes a branch of its own. Under their names those above it would count as
    its newest: the new ones would be pruned, and `auto` would go on with the old branch. If `source` itself
    was left behind, it becomes `step-*` again and all of the branch that it left goes aside, even what lies
    below it.
    """
    back, moved = is_of_run(source, run) and is_left_behind(source), []
    # Newest first: a kill in the middle then leaves no hole below what counts as newest.
    for path in (*reversed(checkpoints_of(run, LAST)), *checkpoints_of(run, BEST)):
        if back or step_of(path) > step:
            moved.append(path.rename(unused(path.with_name(f"{LEFT_BEHIND}{path.name}"))))
    if back:
        source.rename(source.with_name(f"{LAST}{step:08d}"))
    if moved or back:
        flush_folder(run / FOLDER)
    return moved


def unused(path: Path) -> Path:
    """`path`, or the first of `path.2`, `path.3`, ... that is not there yet."""
    names = (path if number == 1 else path.with_name(f"{path.name}.{number}") for number in count(1))
    return next(name for name in names if not name.exists())
