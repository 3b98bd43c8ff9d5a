"""The one way in which a file of somebody else is opened: regular, of a bounded size, without waiting.

A name may lead to a pipe that nobody fills, a terminal, a device whose mere opening acts, a file that grows
faster than it is read. Opening with open() waits for the first and reads the last until memory is gone. Here
the kind is asked for before and after opening (names can be exchanged in between), and the limit holds for
what is read, not only for what the file's entry says.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
from pathlib import Path
from typing import Any

PIECE_BYTES = 1 << 20
MOST_TEXT_BYTES = 16 << 20  # of tables and settings: JSON of so many brackets takes 0.3 GB as objects
MOST_LIST_BYTES = 64 << 20  # of lists with an entry a line: four million names
MOST_LINES = 4 << 20
MOST_LINE_CHARS = 4096  # no path of Linux is longer
FREE_MARKS = 1 << 20  # values of JSON that may lie close together
CHARS_PER_MARK = 8  # of the others
POINTER, MOST_POINTER_BYTES = b"version https://git-lfs", 1024  # what Git LFS leaves in a file's place
FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


class ForeignFileError(OSError):
    """A file that is no regular one, holds more bytes than may be read or none now, or stands for another."""


def open_regular(path: str | Path, max_bytes: int | None = None) -> io.BufferedReader:
    """The file, open for reading and seeking; at most `max_bytes` long, also if it grows meanwhile.

    Raises FileNotFoundError, PermissionError and the like where it cannot be opened, and ForeignFileError
    where it is of another kind or longer, or what Git LFS left in its place. Never waits for a writer.
    """
    descriptor, _ = open_descriptor(path, max_bytes)
    return io.BufferedReader(_Bounded(descriptor, str(path), max_bytes))


def read_bytes(path: str | Path, max_bytes: int | None = MOST_TEXT_BYTES) -> bytes:
    """The whole file; OSErrors as `open_regular`."""
    with open_regular(path, max_bytes) as file:
        return file.read()


def read_text(
    path: str | Path,
    max_bytes: int | None = MOST_TEXT_BYTES,
    *,
    encoding: str = "utf-8",
    errors: str = "strict",
) -> str:
    """The whole file as text whose lines end with a line feed.

    OSErrors as `open_regular`, and UnicodeDecodeError.
    """
    with open_regular(path, max_bytes) as file, io.TextIOWrapper(file, encoding, errors) as text:
        return text.read()


def read_lines(path: str | Path, most_lines: int = MOST_LINES) -> list[str]:
    """The lines of a list in UTF-8, without their ends, a byte order mark and empty lines at the end.

    OSErrors as `open_regular`, UnicodeDecodeError, and ForeignFileError for more or longer lines than any
    list has: what is done with a line may cost the square of its length.
    """
    lines: list[str] = []
    with open_regular(path, MOST_LIST_BYTES) as file, io.TextIOWrapper(file, "utf-8-sig") as text:
        while line := text.readline(MOST_LINE_CHARS + 2):
            lines.append(line.removesuffix("\n"))
            if len(lines[-1]) > MOST_LINE_CHARS:
                raise ForeignFileError(
                    f"{path}, line {len(lines)} has more than {MOST_LINE_CHARS} characters; is it the right "
                    "file?"
                )
            if len(lines) > most_lines:
                raise ForeignFileError(f"{path} has more than {most_lines} lines; is it the right file?")
    while lines and not lines[-1]:
        lines.pop()
    return lines


def why_unreadable(error: OSError | UnicodeDecodeError) -> str:
    """The reason in a few words, for messages that name the file themselves."""
    if isinstance(error, UnicodeDecodeError):
        return f"it is not UTF-8 ({error.reason})"
    return error.strerror or str(error)


def check_sparse(text: str | bytes, marks: str = "[{") -> None:
    """ValueError for long JSON of little but lists and objects, each of which takes some 80 bytes of memory.

    `marks`: the characters that are counted; with a comma, any values.
    """
    if isinstance(text, str):
        found = sum(text.count(mark) for mark in marks)
    else:
        found = sum(text.count(mark.encode()) for mark in marks)
    if found > FREE_MARKS + len(text) // CHARS_PER_MARK:
        raise ValueError(f"it holds {found} values in {len(text)} characters; is it the right file?")


def sha256_of(path: str | Path) -> str:
    """The digest of a regular file of any size, in hexadecimal."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def open_descriptor(path: str | Path, max_bytes: int | None = None) -> tuple[int, int]:
    """`open_regular` for who reads at offsets: (descriptor, bytes in the file). The caller closes it."""
    _check(path, os.stat(path), max_bytes)
    descriptor = os.open(path, FLAGS)
    try:
        status = os.fstat(descriptor)
        _check(path, status, max_bytes)
        if status.st_size <= MOST_POINTER_BYTES and os.pread(descriptor, len(POINTER), 0) == POINTER:
            raise ForeignFileError(
                f"{path} is a pointer of Git LFS, not the file itself; run git lfs pull there"
            )
    except OSError:
        os.close(descriptor)
        raise
    return descriptor, status.st_size


def _check(path: str | Path, status: os.stat_result, max_bytes: int | None) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = KINDS.get(stat.S_IFMT(status.st_mode), "of an unknown kind")
        raise ForeignFileError(f"{path} is {kind}, expected a regular file; name the file itself")
    if max_bytes is not None and status.st_size > max_bytes:
        raise _too_long(path, f"{status.st_size}", max_bytes)


def _too_long(path: str | Path, found: str, max_bytes: int) -> ForeignFileError:
    return ForeignFileError(f"{path} has {found} bytes, at most {max_bytes} are read; is it the right file?")


class _Bounded(io.FileIO):
    """A file that refuses to give more than its limit: some say that they are empty and never end."""

    def __init__(self, descriptor: int, path: str, max_bytes: int | None) -> None:
        super().__init__(descriptor, "rb")
        self._path, self._max_bytes = path, max_bytes

    def readinto(self, buffer: Any) -> int:
        num_bytes = super().readinto(buffer)
        self._check(num_bytes is None)
        return num_bytes

    def read(self, size: int | None = -1) -> bytes:
        if size is None or size < 0:
            return self.readall()
        data = super().read(size)
        self._check(data is None)
        return data

    def readall(self) -> bytes:
        pieces = []
        while piece := self.read(PIECE_BYTES):
            pieces.append(piece)
        return b"".join(pieces)

    def _check(self, would_wait: bool) -> None:
        if would_wait:
            raise ForeignFileError(f"{self._path} has no bytes to give now, expected a regular file")
        if self._max_bytes is not None and self.tell() > self._max_bytes:
            raise _too_long(self._path, f"{self.tell()} or more", self._max_bytes)
