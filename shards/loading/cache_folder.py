"""The folder of the cache: copies `<sha256>.tar`, what is being fetched, locks, and the room that they take.

A name in the folder is a promise, whoever made it: a copy gets its name by rename only when its bytes and
digest are right. A lock a shard lets one reader of all processes and jobs on the node fetch it while the
others wait; the kernel frees a dead one's lock. Room for a copy is reserved before a byte of it is fetched;
when there is none, the copies that were not used for longest go, and whoever still reads one keeps it until
he closes it. All errors of the disk leave here as OSError.
"""

from __future__ import annotations

import errno
import math
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from maskshards.shards.errors import StoreError
from maskshards.shards.format.index import ShardInfo
from maskshards.shards.storage.file_lock import LockedError, held

FULL = (errno.ENOSPC, errno.EDQUOT)
NOT_SUPPORTED = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENODEV)
ABANDONED_S = 3600.0  # no byte for so long: who wrote it, on whatever host, is gone


class CacheFolder:
    """Files of one folder, which may serve many data sets and jobs. Safe to use from several threads."""

    def __init__(self, path: Path, max_bytes: int) -> None:
        self.path, self.max_bytes = path, max_bytes

    def make(self) -> None:
        """Make the folder, for its user alone, where it is not there (any more)."""
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)

    def file(self, shard: ShardInfo) -> Path:
        """Where the copy of a shard is, or would be."""
        return self.path / file_name(shard)

    @contextmanager
    def lock(self, shard: ShardInfo, stopped: threading.Event) -> Iterator[None]:
        """Hold a shard's lock; StoreError if `stopped` is set while somebody else fetches it."""
        with self._held(f".{shard.sha256}.lock", stopped):
            yield

    def add(
        self,
        shard: ShardInfo,
        copy: Callable[[BinaryIO], str],
        dropped: Callable[[str], None],
        stopped: threading.Event,
    ) -> str:
        """Let `copy` write the shard, and name it if the digest that it returns is the shard's; the digest.

        Hold the shard's lock. `dropped` hears of each copy that had to go. Where the disk is full, copies go
        and it is tried once more.
        """
        here = socket.gethostname()
        for left in self.path.glob(f".{shard.sha256}.{here}.*.part"):
            left.unlink(missing_ok=True)  # whoever wrote it is dead: the lock is ours
        part = self.path / f".{shard.sha256}.{here}.{os.getpid()}.{secrets.token_hex(4)}.part"
        self._make_room(shard.bytes, self.max_bytes, dropped, stopped)
        try:
            with self._reserved(part, shard.bytes, dropped, stopped) as out:
                digest = copy(out)
                out.flush()
                os.fsync(out.fileno())
            if digest == shard.sha256:
                os.rename(part, self.file(shard))
            return digest
        finally:
            with suppress(OSError):
                part.unlink(missing_ok=True)

    @contextmanager
    def _reserved(
        self, part: Path, num_bytes: int, dropped: Callable[[str], None], stopped: threading.Event
    ) -> Iterator[BinaryIO]:
        try:
            out = _reserve(part, num_bytes)
        except OSError as error:
            if error.errno not in FULL or not self._make_room(0, -num_bytes, dropped, stopped):
                raise
            out = _reserve(part, num_bytes)
        with out:
            yield out

    def _make_room(
        self, num_bytes: int, limit: int, dropped: Callable[[str], None], stopped: threading.Event
    ) -> bool:
        """Drop copies, longest unused first, until `num_bytes` more fit into `limit`; whether any went.

        A negative limit says how many bytes are to go, whatever is there.
        """
        with self._held(".room.lock", stopped):
            for _, _, part in self._files(".*.part", before=time.time() - ABANDONED_S):
                part.unlink(missing_ok=True)
            copies, went = self._files("*.tar"), False
            total = num_bytes + sum(size for _, size, _ in [*copies, *self._files(".*.part")])
            most = limit if limit >= 0 else total + limit
            for _, size, path in copies:
                if total <= most:
                    break
                path.unlink(missing_ok=True)
                dropped(path.name)
                total, went = total - size, True
            return went

    def _files(self, pattern: str, before: float = math.inf) -> list[tuple[float, int, Path]]:
        """(time of last use or writing, bytes, path) of the files of this pattern, the oldest first."""
        found = []
        for path in self.path.glob(pattern):
            with suppress(FileNotFoundError):  # renamed or dropped meanwhile, by another job perhaps
                status = path.stat()
                if status.st_mtime < before:
                    found.append((status.st_mtime, status.st_size, path))
        return sorted(found)

    @contextmanager
    def _held(self, name: str, stopped: threading.Event) -> Iterator[None]:
        try:
            with held(self.path / name, math.inf, stopped=stopped):
                yield
        except LockedError as error:
            raise StoreError(f"{error}; the store was closed while waiting for it") from error


def file_name(shard: ShardInfo) -> str:
    """Of its copy."""
    return f"{shard.sha256}.tar"


def _reserve(part: Path, num_bytes: int) -> BinaryIO:
    """A new file with room for so many bytes, so that a full disk shows before anything was fetched."""
    out = open(part, "xb")
    try:
        os.posix_fallocate(out.fileno(), 0, max(1, num_bytes))
    except OSError as error:
        if error.errno not in NOT_SUPPORTED:
            out.close()
            part.unlink(missing_ok=True)
            raise
    return out
