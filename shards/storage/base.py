"""What a store is: named files of one split, exact byte ranges, nothing else.

A store answers `read(name, offset, size)` with exactly that many bytes or a StoreError that names the place.
It knows no tar and no index; whoever reads checks what the bytes mean. Names are plain file names inside the
split's folder, so that nothing a manifest says can lead elsewhere; URLs are used as they are, no environment
variable rewrites them and no scheme starts a program.
"""

from __future__ import annotations

import io
import logging
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import TypeVar

from maskshards.shards.errors import StoreError

log = logging.getLogger(__name__)

Result = TypeVar("Result")

FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,254}")
SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
WHOLE_FILE_BYTES = 16 << 20
MOST_READS = 4  # over a network, of what arrives damaged


class Store(ABC):
    """One split's files. All methods may be called from several threads."""

    base: str
    num_connections = 1  # reads of samples that should be under way at once; more over a network
    is_remote = False  # whether files that are read once come over a network: one question, not one a piece
    keeps_copies = False  # whether `prefetch` does anything

    @abstractmethod
    def read(self, name: str, offset: int, size: int) -> bytes:
        """Exactly `size` bytes from `offset` of file `name`; StoreError if there are fewer, or none."""

    @abstractmethod
    def size(self, name: str) -> int:
        """Bytes in file `name`; StoreError where it is missing."""

    def again(self, name: str, num_reads: int) -> bool:
        """Whether reading `name` once more may help, `num_reads` of which proved wrong in a row.

        Drops kept copies.
        """
        return False

    def prefetch(self, names: Iterable[str]) -> None:  # noqa: B027
        """Fetch these files in the background, where the store keeps copies."""

    @abstractmethod
    def close(self) -> None:
        """Let go of open files and connections; the store may be used again afterwards."""


def believed(read: Callable[[], Result], refused: type[Exception], store: Store, name: str) -> Result:
    """What `read` made of file `name`, asked again where bytes may have changed on their way.

    `read` raises `refused` for bytes that are wrong.
    """
    num_reads = 0
    while True:
        try:
            return read()
        except refused as error:
            num_reads += 1
            if not store.again(name, num_reads):
                raise
            log.warning("%s/%s is asked for again: %s", store.base, name, error)


def checked_name(name: str) -> str:
    """`name` itself if it is a plain file name; anything that could lead out of the folder is refused."""
    if not FILE_NAME.fullmatch(name):
        raise StoreError(f"{name!r} is not a plain file name (letters, digits, '.', '_' and '-' only)")
    return name


class StoreFile(io.RawIOBase):
    """A store's file as a seekable Python file, for readers such as pyarrow's that want one."""

    def __init__(self, store: Store, name: str) -> None:
        self._store, self._name, self._place = store, name, 0
        self._num_bytes = store.size(name)
        # A network answers one question for a whole small file sooner than many for its parts.
        at_once = store.is_remote and self._num_bytes <= WHOLE_FILE_BYTES
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
