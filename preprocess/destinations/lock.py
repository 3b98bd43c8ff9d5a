"""One builder a destination.

A whole build and `finish` hold the lock alone; the parts of an array job share it, and each part has a lock
of its own, so that no part runs twice at a time. A killed builder leaves nothing to clear away.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from maskshards.preprocess.errors import BuildError
from maskshards.shards.storage.file_lock import LockedError, held
from maskshards.shards.storage.made_folder import made_folder

PATIENCE_S = 2.0  # a builder that was just killed may take a moment to be gone


@contextmanager
def build_lock(out: Path, part: tuple[int, int] | None = None) -> Iterator[None]:
    """Hold the destination `out`, alone or as part I of N; BuildError where another builder is at work."""
    with ExitStack() as stack:
        try:
            stack.enter_context(made_folder(out))
        except OSError as error:
            raise BuildError(
                f"--out {out} cannot be made a folder: {error.strerror}; name a place that can be written to"
            ) from error
        _hold(stack, out / ".lock", shared=part is not None)
        if part is None:
            for left in out.glob(".lock-*"):  # of parts that were killed: the lock was free, so none is alive
                left.unlink(missing_ok=True)
        else:
            _hold(stack, out / f".lock-{part[0]}-of-{part[1]}", shared=False)
        yield


def _hold(stack: ExitStack, path: Path, shared: bool) -> None:
    try:
        stack.enter_context(held(path, PATIENCE_S, shared=shared))
    except LockedError as error:
        who = f" ({error.holder})" if error.holder else ""
        raise BuildError(
            f"{path.parent}: another builder is at work here{who}; let it end, or build to another folder"
        ) from error
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise BuildError(
            f"{path} is a link, which is not followed; remove it, or build to another folder"
        ) from error
