"""A folder on this machine as a store."""

from __future__ import annotations

import os
from pathlib import Path

from maskshards.shards.errors import StoreError
from maskshards.shards.storage.base import Store, checked_name
from maskshards.shards.storage.open_files import OPEN_FILES


class LocalStore(Store):
    """A folder on this machine, read with pread, which needs no lock and lets other threads run."""

    def __init__(self, base: str | Path) -> None:
        self.base = str(base)
        self._folder = Path(base)
        self._paths: dict[str, Path] = {}  # of names that were asked for: joining takes a while
        self._number = OPEN_FILES.enrol(self)

    def read(self, name: str, offset: int, size: int) -> bytes:
        path = self._path(name)
        file = OPEN_FILES.take(self._number, path)
        try:
            data = os.pread(file.fd, size, offset)
            while len(data) < size:  # a signal or a network file system may cut one read short
                more = os.pread(file.fd, size - len(data), offset + len(data))
                if not more:
                    raise StoreError(
                        f"{path} ends at byte {offset + len(data)}, expected bytes up to "
                        f"{offset + size}; it was cut short or belongs to another build"
                    )
                data += more
            return data
        except StoreError:
            raise
        except OSError as error:  # a file that was replaced on its server (ESTALE), a broken disk (EIO)
            self.forget(name)
            raise StoreError(
                f"{path} cannot be read at byte {offset}: {error.strerror}; look after its disk or server"
            ) from error
        finally:
            OPEN_FILES.give_back(file)

    def size(self, name: str) -> int:
        file = OPEN_FILES.take(self._number, self._path(name))
        OPEN_FILES.give_back(file)
        return file.num_bytes

    def _path(self, name: str) -> Path:
        path = self._paths.get(name)
        if path is None:
            path = self._paths[name] = self._folder / checked_name(name)
        return path

    def forget(self, name: str) -> None:
        """Open the file anew at the next read."""
        OPEN_FILES.forget(self._number, name)

    def close(self) -> None:
        OPEN_FILES.forget(self._number)

    def __getstate__(self) -> str:
        return self.base

    def __setstate__(self, base: str) -> None:
        self.__init__(base)  # type: ignore[misc]
