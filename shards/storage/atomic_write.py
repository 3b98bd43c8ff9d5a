"""Files and folders that show under their name whole or not at all, whatever happens meanwhile."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

PIECE_BYTES = 64 << 20


def write_through(path: Path, data: bytes, wrote: Callable[[], object] | None = None) -> None:
    """Write a new file and wait until the disk has it; a link in its place is not followed.

    `wrote` is called after every PIECE_BYTES.

    OSError that names the file where the disk is full or refuses.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    with naming(path), os.fdopen(os.open(path, flags, 0o644), "wb") as file:
        for first in range(0, len(data), PIECE_BYTES):
            file.write(memoryview(data)[first : first + PIECE_BYTES])
            if wrote is not None:
                wrote()
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def naming(path: Path) -> Iterator[Path]:
    """Give an OSError inside the file that it is about: a full disk names none by itself."""
    try:
        yield path
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def flush_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A hidden path beside `path` that takes its place, flushed, when the block ends well; else removed.

    OSErrors name the file.
    """
    hidden = path.with_name(f".{path.name}.part")
    hidden.unlink(missing_ok=True)
    try:
        with naming(path):
            yield hidden
            show(hidden, path)
    finally:
        hidden.unlink(missing_ok=True)


def show(hidden: Path, path: Path) -> None:
    """Give a finished file its name: durable, then visible, then durably visible. A link is replaced."""
    with open(hidden, "rb") as file:
        os.fsync(file.fileno())
    os.replace(hidden, path)
    flush_folder(path.parent)
