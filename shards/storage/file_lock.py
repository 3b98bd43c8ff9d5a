"""One at a time: an advisory lock on a file, the kernel's own (flock), so that it dies with its holder.

Nothing has to be cleared away after a kill. While it is held alone, the file says by whom; when it is
released, the file goes. On one machine it is sound; between machines it is what their file system makes of
it (NFS 4, Lustre with flock and CephFS pass it on). Where a file system knows no locks at all, a warning
says so and work goes on without.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path

from maskshards.shards.storage.foreign_file import open_regular

logger = logging.getLogger(__name__)

PAUSE_S = 0.05
NO_LOCKS_HERE = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)
NOTE_BYTES = 4096  # more than a note ever takes; whatever else stands there is no note


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds a lock alone, as its file says."""

    pid: int
    host: str
    since: str  # local time, ISO 8601 with its offset

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"


class LockedError(OSError):
    """Somebody else holds the lock; `holder` is None where several share it or its file says nothing."""

    def __init__(self, path: Path, holder: Holder | None) -> None:
        super().__init__(f"{path} is held by {holder or 'another process'}")
        self.path, self.holder = path, holder


@contextmanager
def held(
    path: Path, patience_s: float, *, shared: bool = False, stopped: threading.Event | None = None
) -> Iterator[None]:
    """Hold the lock file `path`, alone or `shared` with others who say so.

    Raises LockedError if it does not come free within `patience_s` seconds: a holder that was just killed
    may take a moment to be gone. Raises OSError if the file cannot be opened for writing. Where waiting is
    ordinary, give an event: setting it ends the wait, with LockedError, and nothing is logged.
    """
    handle = _acquire(path, fcntl.LOCK_SH if shared else fcntl.LOCK_EX, patience_s, stopped)
    try:
        _note(handle, None if shared else _myself())
        yield
    finally:
        if not shared:  # while it is still held, so that nobody can hold what is being deleted
            with suppress(OSError):  # its folder may have become read-only; the lock is free all the same
                path.unlink(missing_ok=True)
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_UN)  # closing would not do while a forked child has it open too
        os.close(handle)


def holder_of(path: Path) -> Holder | None:
    """Who wrote into the lock file last; None if it says nothing that can be read. It may be dead by now."""
    try:
        with open_regular(path) as file:
            return Holder(**json.loads(file.read(NOTE_BYTES)))
    except (OSError, ValueError, TypeError, RecursionError):
        return None


def _acquire(path: Path, kind: int, patience_s: float, stopped: threading.Event | None) -> int:
    """An open, locked descriptor of the file that `path` names now.

    The last holder may have deleted what we opened.
    """
    deadline, told = time.monotonic() + patience_s, False
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            if _locked(handle, kind, path) and os.stat(path).st_ino == os.fstat(handle).st_ino:
                return handle
        except FileNotFoundError:
            pass  # deleted between opening and locking: there is a new one to be had
        except BlockingIOError:
            if time.monotonic() >= deadline or (stopped is not None and stopped.is_set()):
                os.close(handle)
                raise LockedError(path, holder_of(path)) from None
            if not told and stopped is None:
                told = True
                who = holder_of(path) or "another process"
                logger.warning("%s is held by %s; waiting up to %.0f s for its end", path, who, patience_s)
        except OSError:
            os.close(handle)
            raise
        os.close(handle)
        (stopped.wait if stopped else time.sleep)(PAUSE_S)


def _locked(handle: int, kind: int, path: Path) -> bool:
    """True once locked, or where nothing can be; BlockingIOError while somebody else holds it."""
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in NO_LOCKS_HERE:
            raise
        _warn_of_no_locks(path.parent, error.strerror)
    return True


@lru_cache(maxsize=64)  # once a folder
def _warn_of_no_locks(folder: Path, reason: str) -> None:
    logger.warning(
        "%s: this file system has no locks (%s), so nothing keeps a second process from writing here",
        folder,
        reason,
    )


def _myself() -> Holder:
    return Holder(
        os.getpid(), socket.gethostname(), datetime.now().astimezone().isoformat(timespec="seconds")
    )


def _note(handle: int, holder: Holder | None) -> None:
    """Say who holds the lock. It is held without the note too, so a full disk does no harm."""
    with suppress(OSError):
        os.ftruncate(handle, 0)
        if holder is not None:
            os.pwrite(handle, json.dumps(asdict(holder)).encode(), 0)
