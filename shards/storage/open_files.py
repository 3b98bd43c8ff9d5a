"""Open files of all local stores of a process together: bounded, kept while they are of use, never shared.

A store that kept its own files open could not know that a mixture has nine others like it. So one list holds
them all, closes those that were not used for longest, and stays within half of what the process may open
(`ulimit -n`), less where the other half proves to be too little. A file is closed by its last reader, never
under one. A forked child closes what it inherited and opens its own. A store that was dropped without `close`
leaves a note by a built-in function, so that no code of ours runs while a consumer's objects are collected;
its files are closed when the next one is opened.
"""

from __future__ import annotations

import errno
import itertools
import os
import resource
import threading
import weakref
from collections import OrderedDict, deque
from pathlib import Path
from typing import Any

from maskshards.shards.errors import StoreError
from maskshards.shards.storage.foreign_file import ForeignFileError, open_descriptor

MOST_FILES = 4096
NONE_LEFT = (errno.EMFILE, errno.ENFILE)


class OpenFile:
    """A descriptor, the bytes in its file when it was opened, and how many reads use it now."""

    __slots__ = ("fd", "listed", "num_bytes", "users")

    def __init__(self, fd: int, num_bytes: int) -> None:
        self.fd, self.num_bytes = fd, num_bytes
        self.users, self.listed = 1, True


class _Owner(weakref.ref[Any]):
    """A store, and the number by which its files are known."""

    __slots__ = ("number",)
    number: int


class OpenFiles:
    """The list. Safe to use from several threads."""

    def __init__(self) -> None:
        self._numbers = itertools.count()
        self._owners: dict[int, _Owner] = {}
        self._dropped: deque[_Owner] = deque()
        self._start()

    def _start(self) -> None:
        self._lock = threading.Lock()
        self._files: OrderedDict[tuple[int, str], OpenFile] = OrderedDict()  # used longest ago first
        self._room = MOST_FILES  # less once the process has met its limit

    def enrol(self, store: object) -> int:
        """A number for the store, under which it opens files until it is gone."""
        owner = _Owner(store, self._dropped.append)
        owner.number = next(self._numbers)
        self._owners[owner.number] = owner
        return owner.number

    def take(self, number: int, path: Path) -> OpenFile:
        """The open file of that store; hand it to `give_back` after use. StoreError where it is none."""
        key = (number, path.name)
        with self._lock:
            self._close_dropped()
            file = self._files.get(key)
            if file is not None:
                self._files.move_to_end(key)
                file.users += 1
                return file
        opened = self._open(path)
        with self._lock:
            file = self._files.setdefault(key, opened)
            if file is not opened:  # another thread was quicker
                os.close(opened.fd)
                file.users += 1
            self._shrink(self._most())
        return file

    def give_back(self, file: OpenFile) -> None:
        """The read is done."""
        with self._lock:
            file.users -= 1
            if not file.users and not file.listed:
                os.close(file.fd)

    def forget(self, number: int, name: str | None = None) -> None:
        """Close one file of a store, or all, as soon as no read uses them."""
        with self._lock:
            keys = [(number, name)] if name is not None else [key for key in self._files if key[0] == number]
            for key in keys:
                self._drop(key)

    def after_fork(self) -> None:
        """In a forked child: threads that used these files, or held the lock, do not exist here."""
        inherited = list(self._files.values())
        self._start()
        for file in inherited:
            os.close(file.fd)

    def _open(self, path: Path) -> OpenFile:
        while True:
            try:
                return OpenFile(*open_descriptor(path))
            except ForeignFileError as error:
                raise StoreError(str(error)) from error
            except OSError as error:
                if error.errno in NONE_LEFT and self._yield_half():
                    continue
                advice = ""
                if error.errno in NONE_LEFT:
                    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
                    advice = f"; the process may open {limit}, none of them are shards: raise ulimit -n"
                raise StoreError(f"{path} cannot be opened: {error.strerror}{advice}") from error

    def _yield_half(self) -> bool:
        """Close half of the files and keep to that: the rest of the process needs more. False: none left."""
        with self._lock:
            before = len(self._files)
            self._room = max(1, before // 2)
            self._shrink(before // 2)
            return len(self._files) < before

    def _most(self) -> int:
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return self._room if soft < 0 else max(1, min(self._room, soft // 2))

    def _shrink(self, most: int) -> None:
        """Close those that were not used for longest, and are not in use, until at most so many are left."""
        if len(self._files) > most:
            idle = (key for key, file in self._files.items() if not file.users)
            for key in list(itertools.islice(idle, len(self._files) - most)):
                self._drop(key)

    def _close_dropped(self) -> None:
        while self._dropped:
            number = self._dropped.popleft().number
            self._owners.pop(number, None)
            for key in [key for key in self._files if key[0] == number]:
                self._drop(key)

    def _drop(self, key: tuple[int, str]) -> None:
        file = self._files.pop(key, None)
        if file is not None:
            file.listed = False
            if not file.users:
                os.close(file.fd)


OPEN_FILES = OpenFiles()
os.register_at_fork(after_in_child=OPEN_FILES.after_fork)
