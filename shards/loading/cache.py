"""Whole shards of a remote split, kept on this node's disk: verified, named by digest, within a size limit.

A shard is fetched in pieces into a private file, hashed on the way, and given its name `<sha256>.tar` by
rename only when bytes and digest are those of the manifest: a name in the folder is a promise, whoever made
it, whatever data set it came from. A lock per shard lets one reader of all processes and jobs on the node
fetch it while the others wait; the kernel frees a dead one's lock, and the next one sweeps up what it left.
When space is needed, the shards that were not used for longest go; whoever still reads one keeps it until he
closes it.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from maskshards.shards.errors import StoreError
from maskshards.shards.format.index import ShardInfo
from maskshards.shards.format.manifest import Split
from maskshards.shards.storage.base import Store
from maskshards.shards.storage.local import LocalStore

log = logging.getLogger(__name__)

PIECE_BYTES = 8 << 20
LOCK_POLL_S = 0.05
PREFETCH_THREADS = 2
FRESH_S = 60.0  # a copy used within this time counts as in use; its time of last use is noted this often


@dataclass(frozen=True, slots=True)
class CacheSettings:
    """Where copies are kept and how much room they may take; one folder may serve many data sets and jobs."""

    folder: str | Path
    max_bytes: int = 100 << 30


def cached(split: Split, settings: CacheSettings) -> Split:
    """The same split with its shards read through the cache. Local splits stay as they are."""
    if isinstance(split.store, (LocalStore, CachedStore)):
        return split
    return Split(split.manifest, CachedStore(split.store, split.manifest.shards, settings))


class CachedStore(Store):
    """A store whose shards are copied to a local folder before they are read; other files pass through."""

    keeps_copies = True

    def __init__(self, remote: Store, shards: Iterable[ShardInfo], settings: CacheSettings) -> None:
        self.base, self.remote, self.settings = remote.base, remote, settings
        self._shards = {shard.name: shard for shard in shards}
        largest = max((shard.bytes for shard in self._shards.values()), default=0)
        if largest > settings.max_bytes:
            raise StoreError(
                f"a shard of {self.base} has {largest} bytes, the cache may hold {settings.max_bytes}; "
                "raise the limit, or read ranges without a cache"
            )
        self.folder = Path(settings.folder)
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"cache folder {self.folder} cannot be made: {error.strerror}") from error
        self._start()

    def _start(self) -> None:
        self._local = LocalStore(self.folder)
        self._used: dict[str, float] = {}  # files that this process has open: when it last noted a use
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self._background: ThreadPoolExecutor | None = None
        self._coming: dict[str, Future[None]] = {}

    def __getstate__(self) -> dict[str, object]:
        names = ("base", "remote", "settings", "folder", "_shards")
        return {name: getattr(self, name) for name in names}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._start()

    def read(self, name: str, offset: int, size: int) -> bytes:
        shard = self._shards.get(name)
        if shard is None:
            return self.remote.read(name, offset, size)
        file_name = self._ensure(shard)
        try:
            return self._local.read(file_name, offset, size)
        except StoreError:  # dropped by another job after this process had closed it, or cut short
            self._used.pop(file_name, None)
            self._local.forget(file_name)
            return self._local.read(self._ensure(shard), offset, size)

    def size(self, name: str) -> int:
        shard = self._shards.get(name)
        return self.remote.size(name) if shard is None else shard.bytes

    def again(self, name: str) -> bool:
        """Throw the copy away: it was right when it came, so the disk has spoiled it."""
        shard = self._shards.get(name)
        if shard is None:
            return self.remote.again(name)
        log.warning("the copy of %s in %s is damaged and fetched again", name, self.folder)
        with self._shard_lock(shard):
            self._local.forget(_file_name(shard))
            (self.folder / _file_name(shard)).unlink(missing_ok=True)
            self._used.pop(_file_name(shard), None)
        return True

    def prefetch(self, names: Iterable[str]) -> None:
        """Fetch these shards in the background; errors wait until a shard is read."""
        with self._lock:
            for name in names:
                if name in self._coming or name not in self._shards:
                    continue
                if self._background is None:
                    self._background = ThreadPoolExecutor(
                        PREFETCH_THREADS, thread_name_prefix="maskshards-cache"
                    )
                self._coming[name] = self._background.submit(self._fetch_ahead, self._shards[name])

    def close(self) -> None:
        self._stopped.set()
        self.remote.close()
        with self._lock:
            background, self._background = self._background, None
            self._coming.clear()
            self._used.clear()
        if background is not None:
            background.shutdown(wait=True, cancel_futures=True)
        self._local.close()
        self._stopped = threading.Event()

    def _fetch_ahead(self, shard: ShardInfo) -> None:
        """In the background; what goes wrong here goes wrong again, and is raised, when the shard is read."""
        try:
            self._ensure(shard)
        except StoreError as error:
            log.info("fetching ahead: %s", error)
        finally:
            with self._lock:
                self._coming.pop(shard.name, None)

    def _ensure(self, shard: ShardInfo) -> str:
        """The file name of a verified copy, fetched now if there is none."""
        file_name, now = _file_name(shard), time.monotonic()
        path = self.folder / file_name
        if now - self._used.get(file_name, -FRESH_S) < FRESH_S:
            return file_name
        with self._shard_lock(shard):
            # Asking for the size opens the file: from now on dropping its name does no harm.
            if not self._is_whole(shard):
                self._local.forget(file_name)
                self._fetch(shard, path)
                self._local.size(file_name)
            with suppress(FileNotFoundError):  # open here, but dropped by another job
                os.utime(path)  # the time of last use, by which copies are dropped
            self._used[file_name] = now
        return file_name

    def _is_whole(self, shard: ShardInfo) -> bool:
        """Whether there is a copy of the right length; what it holds was verified when it came."""
        try:
            return self._local.size(_file_name(shard)) == shard.bytes
        except StoreError:
            return False

    def _fetch(self, shard: ShardInfo, path: Path) -> None:
        for left in self.folder.glob(f".{shard.sha256}.{socket.gethostname()}.*.part"):
            left.unlink(missing_ok=True)  # whoever wrote it is dead: the lock is ours
        part = (
            self.folder / f".{shard.sha256}.{socket.gethostname()}.{os.getpid()}.{secrets.token_hex(4)}.part"
        )
        self._make_room(shard.bytes)
        try:
            with open(part, "xb") as out:
                digest = self._copy(shard, out)
                out.flush()
                os.fsync(out.fileno())
            if digest != shard.sha256:
                raise StoreError(
                    f"{self.base}/{shard.name} has sha256 {digest}, the manifest says {shard.sha256}; "
                    "it is damaged or of another data set there"
                )
            os.rename(part, path)
        except OSError as error:
            if isinstance(error, StoreError):
                raise
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            advice = "free some space or lower the cache's max_bytes" if full else "is the folder writable?"
            raise StoreError(
                f"{self.base}/{shard.name} ({shard.bytes} bytes) cannot be kept in {self.folder}: "
                f"{error.strerror}; {advice}"
            ) from error
        finally:
            part.unlink(missing_ok=True)

    def _copy(self, shard: ShardInfo, out: BinaryIO) -> str:
        """Write the remote shard to an open file; its sha256."""
        digest = hashlib.sha256()
        for offset in range(0, shard.bytes, PIECE_BYTES):
            if self._stopped.is_set():
                raise StoreError(f"{self.base}/{shard.name}: the store was closed while it was fetched")
            piece = self.remote.read(shard.name, offset, min(PIECE_BYTES, shard.bytes - offset))
            digest.update(piece)
            out.write(piece)
        return digest.hexdigest()

    def _make_room(self, num_bytes: int) -> None:
        """Drop the copies that were not used for longest until the new one fits into the limit."""
        with self._held(self.folder / ".room.lock"):
            copies = self._files("*.tar")
            total = sum(size for _, size, _ in [*copies, *self._files(".*.part")]) + num_bytes
            for _, size, path in copies:
                if total <= self.settings.max_bytes:
                    return
                path.unlink(missing_ok=True)
                if time.monotonic() - self._used.get(path.name, -FRESH_S) >= FRESH_S:
                    self._local.forget(path.name)
                    self._used.pop(path.name, None)
                total -= size

    def _files(self, pattern: str) -> list[tuple[float, int, Path]]:
        """(time of last use, bytes, path) of the files of this pattern, the least recently used first."""
        found = []
        for path in self.folder.glob(pattern):
            with suppress(FileNotFoundError):  # renamed or dropped meanwhile, by another job perhaps
                status = path.stat()
                found.append((status.st_mtime, status.st_size, path))
        return sorted(found)

    @contextmanager
    def _shard_lock(self, shard: ShardInfo) -> Iterator[None]:
        with self._held(self.folder / f".{shard.sha256}.lock"):
            yield

    @contextmanager
    def _held(self, path: Path) -> Iterator[None]:
        """An exclusive lock between threads, processes and jobs, freed by the kernel if its holder dies."""
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            while True:
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if self._stopped.wait(LOCK_POLL_S):
                        raise StoreError(
                            f"{path}: the store was closed while waiting for another reader"
                        ) from None
            yield
        finally:
            os.close(handle)


def _file_name(shard: ShardInfo) -> str:
    return f"{shard.sha256}.tar"
