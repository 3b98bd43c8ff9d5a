"""Reading a source's files: each once and whole, and a fault that may pass is never blamed on a sample.

A file system across a network blinks: a folder is away for a second, a handle is stale, a process has too
many files open. Such a fault is tried again, and if it stays, it ends the build, which goes on when the same
command runs again. What concerns one file alone (it is gone, unreadable or no file) refuses that sample.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from maskshards.preprocess.errors import RejectedInput, SourceError, SourceUnavailable
from maskshards.shards.storage.foreign_file import (
    MOST_LINES,
    ForeignFileError,
    open_regular,
    read_lines,
    why_unreadable,
)

PAUSES_S = (0.1, 0.4, 1.5, 4.0)  # before the second, third ... attempt
MISSING = frozenset({errno.ENOENT, errno.ENOTDIR})
PASSING = frozenset(
    getattr(errno, name)
    for name in (
        "EIO EMFILE ENFILE ESTALE ETIMEDOUT EAGAIN EBUSY EINTR ENOMEM ENOBUFS ENOLCK EREMOTEIO ENOTCONN"
        " ECONNRESET ECONNABORTED ECONNREFUSED EPIPE EHOSTDOWN EHOSTUNREACH ENETDOWN ENETUNREACH ENETRESET"
        " ESHUTDOWN ECOMM ENOLINK EPROTO ENODEV"
    ).split()
    if hasattr(errno, name)
)
Answer = TypeVar("Answer")


def list_lines(path: Path, what: str, expected: str, most_lines: int = MOST_LINES) -> list[str]:
    """The lines of a table or list of the data set, which is called `what` in words.

    SourceError where it cannot be read.
    """
    try:
        return read_lines(path, most_lines)
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(
            f"{what} {path} cannot be read: {why_unreadable(error)}; expected {expected}"
        ) from error


def may_pass(error: OSError) -> bool:
    """Whether a fault of the system may be gone later, so that it says nothing of the file."""
    return error.errno in PASSING or isinstance(error, (TimeoutError, ConnectionError))


def read_unchanged(root: Path, path: str) -> bytes:
    """A whole file below `root`.

    RejectedInput where it cannot be read or changes while it is read, SourceUnavailable where the fault may
    pass.
    """
    try:
        return patiently(lambda: _read_once(root, path), f"{root}/{path}")
    except OSError as error:
        raise RejectedInput(f"{path} cannot be read: {error.strerror or error}") from error


def file_stamp(path: str) -> str:
    """A text that changes when a file is written to or replaced, even by one of equal size and time.

    'gone' where there is none. SourceUnavailable where that cannot be known now.
    """
    try:
        return _stamp(patiently(lambda: os.stat(path), path))
    except OSError:
        return "gone"


def patiently(attempt: Callable[[], Answer], path: str) -> Answer:
    """The answer of an attempt on `path`, tried again while its OSError may pass; any other is raised.

    SourceUnavailable in the end.
    """
    for pause_s in (0.0, *PAUSES_S, None):
        try:
            return attempt()
        except OSError as error:
            folder_gone = error.errno in MISSING and not os.path.isdir(os.path.dirname(path))
            # A missing file is looked for once more at once: its folder may have come back meanwhile.
            if not (folder_gone or may_pass(error) or (error.errno in MISSING and pause_s == 0.0)):
                raise
            if pause_s is None:
                what = "its folder is gone" if folder_gone else error.strerror or str(error)
                raise SourceUnavailable(
                    f"{path} cannot be read now: {what} ({len(PAUSES_S) + 2} attempts). That may pass, so"
                    " the file is not refused; finished shards are kept: see that the source is there, and"
                    " the same command goes on from there"
                ) from error
            _wait(pause_s)
    raise AssertionError("the last attempt returns or raises")


def _wait(pause_s: float) -> None:
    threading.Event().wait(pause_s)


MOST_BYTES = 4 << 30  # of an image or label file; no format that is read has more


def _read_once(root: Path, path: str) -> bytes:
    try:
        with open_regular(f"{root}/{path}", MOST_BYTES) as file:
            before = os.fstat(file.fileno())
            data = file.read()
            after = os.fstat(file.fileno())
    except ForeignFileError as error:
        told = str(error).removeprefix(f"{root}/")
        raise RejectedInput(f"{path} is no regular file" if "expected a regular" in told else told) from error
    if _stamp(before) != _stamp(after) or len(data) != after.st_size:
        raise RejectedInput(f"{path} changed while it was read; let it rest and build again")
    return data


def _stamp(facts: os.stat_result) -> str:
    """Size and time may be copied (cp -p, rsync -t); inode and time of change cannot."""
    return f"{facts.st_size}:{facts.st_mtime_ns}:{facts.st_ino}:{facts.st_ctime_ns}"
