"""One builder a destination: an advisory lock on a file that dies with its holder.

A whole build and `finish` hold the lock alone; the parts of an array job share it, and each part has a lock
of its own, so that no part runs twice at a time. The lock is the kernel's (flock), so a killed builder
leaves nothing to clear away.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from preprocess.errors import BuildError

PATIENCE_S = 2.0  # a builder that was just killed may take a moment to be gone
PAUSE_S = 0.05


@contextmanager
def build_lock(out: Path, part: tuple[int, int] | None = None) -> Iterator[None]:
    """Hold the destination `out`, alone or as part I of N; BuildError where another builder is at work."""
    try:
        fresh = not out.exists()
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BuildError(
            f"--out {out} cannot be made a folder: {error.strerror}; name a place that can be written to"
        ) from error
    with ExitStack() as stack:
        if fresh:
            stack.callback(_remove_if_empty, out)
        stack.enter_context(_hold(out / ".lock", shared=part is not None))
        if part is None:
            for left in out.glob(".lock-*"):  # of parts that were killed: the lock was free, so none is alive
                left.unlink(missing_ok=True)
        else:
            stack.enter_context(_hold(out / f".lock-{part[0]}-of-{part[1]}", shared=False))
        yield


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


@contextmanager
def _hold(path: Path, shared: bool) -> Iterator[None]:
    handle = _acquire(path, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
    try:
        yield
    finally:
        if not shared:
            path.unlink(
                missing_ok=True
            )  # while it is still held, so that nobody can hold what is being deleted
        os.close(handle)


def _acquire(path: Path, kind: int) -> int:
    """An open, locked descriptor of the file that `path` names now (the last holder may have deleted what
    we opened).
    """
    deadline = time.monotonic() + PATIENCE_S
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(handle, kind | fcntl.LOCK_NB)
            if os.stat(path).st_ino == os.fstat(handle).st_ino:
                return handle
        except (BlockingIOError, FileNotFoundError) as error:
            if time.monotonic() > deadline:
                os.close(handle)
                raise BuildError(
                    f"{path.parent}: another builder is at work here; let it end, or build to another folder"
                ) from error
        os.close(handle)
        time.sleep(PAUSE_S)
