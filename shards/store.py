"""Where a split's files are read from: named files, exact byte ranges, nothing else.

A store answers `read(name, offset, size)` with exactly that many bytes or a StoreError that names the place.
It knows no tar and no index; whoever reads checks what the bytes mean. Names are plain file names inside the
split's folder, so that nothing a manifest says can lead elsewhere; URLs are used as they are, no environment
variable rewrites them and no scheme starts a program.
"""

from __future__ import annotations

import io
import os
import re
import stat
import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from pathlib import Path

from shards.errors import StoreError

FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,254}")
SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
WHOLE_FILE_BYTES = 16 << 20
OPEN_FILES = 256  # a rank needs about one shard for each slot of its batch


class Store(ABC):
    """One split's files. All methods may be called from several threads."""

    base: str
    num_connections = 1  # reads that should be under way at once; more than 1 where each waits for a network

    @abstractmethod
    def read(self, name: str, offset: int, size: int) -> bytes:
        """Exactly `size` bytes from `offset` of file `name`; StoreError if there are fewer, or none."""

    @abstractmethod
    def size(self, name: str) -> int:
        """Bytes in file `name`; StoreError where it is missing."""

    def again(self, name: str) -> bool:
        """What was read of `name` proved wrong: whether reading it once more may help. Drops kept copies."""
        return False

    @abstractmethod
    def close(self) -> None:
        """Let go of open files and connections; the store may be used again afterwards."""


def open_store(base: str | Path) -> Store:
    """The store of a folder or of a file://, http(s)://, s3://, gs:// or hf:// URL; no connection is made."""
    scheme = SCHEME.match(str(base))
    if scheme is None or scheme[1] == "file":
        return LocalStore(str(base).removeprefix("file://"))
    if scheme[1] in ("http", "https"):
        from shards.http_store import HttpStore

        return HttpStore(str(base))
    from shards.cloud_store import CloudStore

    return CloudStore(str(base))


def checked_name(name: str) -> str:
    """`name` itself if it is a plain file name; anything that could lead out of the folder is refused."""
    if not FILE_NAME.fullmatch(name):
        raise StoreError(f"{name!r} is not a plain file name (letters, digits, '.', '_' and '-' only)")
    return name


class _OpenFile:
    """A file descriptor that closes with its last user: dropping it from a list cannot pull it from under
    a read.
    """

    def __init__(self, path: Path) -> None:
        self.fd = -1
        try:
            self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            status = os.fstat(self.fd)
        except OSError as error:
            raise StoreError(f"{path} cannot be opened: {error.strerror}") from error
        if not stat.S_ISREG(status.st_mode):
            raise StoreError(f"{path} is not a regular file")
        self.num_bytes = status.st_size

    def __del__(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)


class LocalStore(Store):
    """A folder on this machine, read with pread, which needs no lock and lets other threads run."""

    def __init__(self, base: str | Path) -> None:
        self.base = str(base)
        self._folder = Path(base)
        self._files: OrderedDict[str, _OpenFile] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, name: str, offset: int, size: int) -> bytes:
        file = self._open(name)
        data = os.pread(file.fd, size, offset)
        while len(data) < size:  # a signal or a network file system may cut one read short
            more = os.pread(file.fd, size - len(data), offset + len(data))
            if not more:
                raise StoreError(
                    f"{self._folder / name} ends at byte {offset + len(data)}, expected bytes up to "
                    f"{offset + size}; it was cut short or belongs to another build"
                )
            data += more
        return data

    def size(self, name: str) -> int:
        return self._open(name).num_bytes

    def forget(self, name: str) -> None:
        """Open the file anew at the next read."""
        with self._lock:
            self._files.pop(name, None)

    def close(self) -> None:
        with self._lock:
            self._files.clear()

    def _open(self, name: str) -> _OpenFile:
        with self._lock:
            file = self._files.get(name)
            if file is None:
                file = self._files[name] = _OpenFile(self._folder / checked_name(name))
                if len(self._files) > OPEN_FILES:
                    self._files.popitem(last=False)
            else:
                self._files.move_to_end(name)
            return file

    def __getstate__(self) -> str:
        return self.base

    def __setstate__(self, base: str) -> None:
        self.__init__(base)  # type: ignore[misc]


class StoreFile(io.RawIOBase):
    """A store's file as a seekable Python file, for readers such as pyarrow's that want one."""

    def __init__(self, store: Store, name: str) -> None:
        self._store, self._name, self._place = store, name, 0
        self._num_bytes = store.size(name)
        # A network answers one question for a whole small file sooner than many for its parts.
        at_once = store.num_connections > 1 and self._num_bytes <= WHOLE_FILE_BYTES
        self._data = store.read(name, 0, self._num_bytes) if at_once else None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._num_bytes}[whence]
        self._place = max(0, start + offset)
        return self._place

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer).cast("B")  # type: ignore[arg-type]
        wanted = max(0, min(len(view), self._num_bytes - self._place))
        if self._data is not None:
            view[:wanted] = self._data[self._place : self._place + wanted]
        elif wanted:
            view[:wanted] = self._store.read(self._name, self._place, wanted)
        self._place += wanted
        return wanted
