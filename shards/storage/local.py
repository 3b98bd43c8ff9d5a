"""A folder on this machine as a store."""

from __future__ import annotations

import os
import stat
import threading
from collections import OrderedDict
from pathlib import Path

from maskshards.shards.errors import StoreError
from maskshards.shards.storage.base import Store, checked_name

OPEN_FILES = 256  # a rank needs about one shard for each slot of its batch


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
