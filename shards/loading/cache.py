"""Whole shards of a remote split, kept on this node's disk: verified, named by digest, within a size limit.

A shard is fetched in pieces and hashed on the way. `cache_folder` keeps the files. A cache that cannot keep a
copy, because its disk is full or read-only, costs speed and not the run: a warning says so, and the shard is
read by ranges for a while. A folder that somebody deletes is made again.
"""

from __future__ import annotations

import copy
import errno
import hashlib
import logging
import os
import threading
import time
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import BinaryIO

from maskshards.shards.errors import StoreError
from maskshards.shards.format.index import ShardInfo
from maskshards.shards.format.manifest import Split
from maskshards.shards.loading.cache_folder import FULL, CacheFolder, file_name
from maskshards.shards.order.order import whole_number
from maskshards.shards.storage.base import Store
from maskshards.shards.storage.local import LocalStore
from maskshards.shards.storage.per_process import PerProcess

log = logging.getLogger(__name__)

PIECE_BYTES = 8 << 20
PREFETCH_THREADS = 2
FRESH_S = 60.0  # a copy used within this time counts as in use; its time of last use is noted this often
WITHOUT_S = 60.0  # how long a shard that could not be kept is read by ranges before it is tried again
LOOK_UP_S = 0.2
ADVICE = {
    **dict.fromkeys(FULL, "free some space or lower max_bytes"),
    errno.ENOBUFS: "raise max_bytes: it should hold the shards that are read at once",
}


@dataclass(frozen=True, slots=True)
class CacheSettings:
    """Where copies are kept and how much room they may take; one folder may serve many data sets and jobs."""

    folder: str | Path
    max_bytes: int = 100 << 30

    def __post_init__(self) -> None:
        if not str(self.folder).strip():
            raise ValueError("the cache's folder has no name; give one, or leave the cache out")
        size: object = self.max_bytes
        # Many write bytes as 100e9.
        size = int(size) if isinstance(size, float) and size.is_integer() else size
        object.__setattr__(self, "max_bytes", whole_number(size, "the cache's max_bytes", 1))


def cached(split: Split, settings: CacheSettings) -> Split:
    """The same split with its shards read through the cache. Local splits stay as they are."""
    if isinstance(split.store, (LocalStore, CachedStore)):
        return split
    return Split(split.manifest, CachedStore(split.store, split.manifest.shards, settings))


@dataclass
class _Running:
    """What belongs to one process between two closes."""

    stopped: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)
    used: dict[str, float] = field(default_factory=dict)  # open files: when a use was last noted
    without: dict[str, float] = field(default_factory=dict)  # shards that could not be kept: since when
    coming: dict[str, Future[None]] = field(default_factory=dict)
    background: ThreadPoolExecutor | None = None

    def stop(self) -> None:
        """Begin nothing more."""
        with self.lock:
            self.stopped.set()
        if self.background is not None:
            self.background.shutdown(wait=False, cancel_futures=True)


class CachedStore(Store):
    """A store whose shards are copied to a local folder before they are read; other files pass through."""

    keeps_copies, is_remote = True, True

    def __init__(self, remote: Store, shards: Iterable[ShardInfo], settings: CacheSettings) -> None:
        self.base, self.remote, self.settings = remote.base, remote, settings
        self._shards = {shard.name: shard for shard in shards}
        largest = max((shard.bytes for shard in self._shards.values()), default=0)
        if largest > settings.max_bytes:
            raise StoreError(
                f"a shard of {self.base} has {largest} bytes, the cache may hold {settings.max_bytes}; "
                "raise the limit, or read ranges without a cache"
            )
        self.folder = Path(settings.folder).expanduser().absolute()
        self._files = CacheFolder(self.folder, settings.max_bytes)
        try:
            self._files.make()
        except OSError as error:
            raise StoreError(f"cache folder {self.folder} cannot be made: {error.strerror}") from error
        self._start()

    def _start(self) -> None:
        self._local = LocalStore(self.folder)
        self._running = PerProcess(_Running, _Running.stop)

    def __getstate__(self) -> dict[str, object]:
        names = ("base", "remote", "settings", "folder", "_files", "_shards")
        return {name: getattr(self, name) for name in names}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self.remote = copy.copy(self.remote)  # so that closing the copy leaves the other's connections alone
        self._start()

    def read(self, name: str, offset: int, size: int) -> bytes:
        shard, running = self._shards.get(name), self._running.get()
        for _ in range(2):
            if shard is None or not self._ensure(shard, running):
                break
            try:
                return self._local.read(file_name(shard), offset, size)
            except StoreError:  # dropped by another job after this process had closed it, or cut short
                self._forget(file_name(shard))
        return self.remote.read(name, offset, size)

    def size(self, name: str) -> int:
        shard = self._shards.get(name)
        return self.remote.size(name) if shard is None else shard.bytes

    def again(self, name: str, num_reads: int) -> bool:
        """Throw the copy away: it was right when it came, so the disk has spoiled it."""
        shard = self._shards.get(name)
        if shard is None or name in self._running.get().without:
            return self.remote.again(name, num_reads)
        if num_reads > 1:
            return False
        log.warning("the copy of %s in %s is damaged and fetched again", name, self.folder)
        try:
            with self._files.lock(shard, self._running.get().stopped):
                self._forget(file_name(shard))
                self._files.file(shard).unlink(missing_ok=True)
        except StoreError:
            raise
        except OSError as error:
            self._go_without(shard, error)
        return True

    def prefetch(self, names: Iterable[str]) -> None:
        """Fetch these shards in the background; errors wait until a shard is read."""
        running = self._running.get()
        with running.lock:
            for name in names:
                if name in running.coming or name not in self._shards or running.stopped.is_set():
                    continue
                if running.background is None:
                    running.background = ThreadPoolExecutor(
                        PREFETCH_THREADS, thread_name_prefix="maskshards-cache"
                    )
                running.coming[name] = running.background.submit(
                    self._fetch_ahead, self._shards[name], running
                )

    def close(self) -> None:
        """End what is fetched ahead, and let go of files and connections."""
        running = self._running.get()
        self._running.close()
        self.remote.close()
        # A thread that was between two pieces has asked for one more meanwhile.
        while coming := [future for future in list(running.coming.values()) if not future.done()]:
            wait(coming, LOOK_UP_S)
            self.remote.close()
        if running.background is not None:
            running.background.shutdown(wait=True)
        self._local.close()

    def _fetch_ahead(self, shard: ShardInfo, running: _Running) -> None:
        """In the background; what goes wrong here goes wrong again, and is raised, when the shard is read."""
        try:
            self._ensure(shard, running)
        except StoreError as error:
            log.info("fetching ahead: %s", error)
        finally:
            with running.lock:
                running.coming.pop(shard.name, None)

    def _ensure(self, shard: ShardInfo, running: _Running) -> bool:
        """Whether there is a verified copy, fetched now if there was none; False where none can be kept."""
        now = time.monotonic()
        if now - running.used.get(file_name(shard), -FRESH_S) < FRESH_S:
            return True
        if now - running.without.get(shard.name, -WITHOUT_S) < WITHOUT_S:
            return False
        try:
            try:
                self._copy_of(shard, running)
            except FileNotFoundError:  # the folder was deleted
                self._files.make()
                self._copy_of(shard, running)
        except StoreError:
            raise
        except OSError as error:
            self._go_without(shard, error)
            return False
        running.used[file_name(shard)] = now
        return True

    def _copy_of(self, shard: ShardInfo, running: _Running) -> None:
        """Open the copy, made now if there is none; StoreError of the source, OSError of the disk."""
        with self._files.lock(shard, running.stopped):
            # Asking for the size opens the file: from now on dropping its name does no harm.
            if not self._is_whole(shard):
                self._local.forget(file_name(shard))
                self._fetch(shard, running)
                if not self._is_whole(shard):
                    raise OSError(errno.ENOBUFS, "another reader needed its room at once")
            with suppress(FileNotFoundError):  # open here, but dropped by another job
                os.utime(self._files.file(shard))  # the time of last use, by which copies are dropped

    def _go_without(self, shard: ShardInfo, error: OSError) -> None:
        running = self._running.get()
        if not running.without:  # once until a close
            advice = ADVICE.get(error.errno or 0, "is it writable?")
            log.warning(
                "%s/%s (%d bytes) cannot be kept in %s: %s; %s. It is read by ranges meanwhile, like all that"
                " cannot be kept",
                self.base,
                shard.name,
                shard.bytes,
                self.folder,
                error.strerror,
                advice,
            )
        running.without[shard.name] = time.monotonic()
        self.num_connections = self.remote.num_connections  # from now on some reads wait for it

    def _is_whole(self, shard: ShardInfo) -> bool:
        """Whether there is a copy of the right length; what it holds was verified when it came."""
        try:
            return self._local.size(file_name(shard)) == shard.bytes
        except StoreError:
            return False

    def _fetch(self, shard: ShardInfo, running: _Running) -> None:
        """Fetch a shard, again if it arrives damaged; what comes wrong alike twice is wrong there."""
        arrived: set[str] = set()
        for num_fetches in count(1):
            digest = self._files.add(
                shard, lambda out: self._copy(shard, out, running), self._dropped, running.stopped
            )
            if digest == shard.sha256:
                return
            told = f"{self.base}/{shard.name} has sha256 {digest}, the manifest says {shard.sha256}"
            if digest in arrived or not self.remote.again(shard.name, num_fetches):
                raise StoreError(f"{told}; it is damaged or of another data set there")
            arrived.add(digest)
            log.warning("%s; it is fetched again", told)

    def _copy(self, shard: ShardInfo, out: BinaryIO, running: _Running) -> str:
        """Write the remote shard to an open file; its sha256."""
        digest = hashlib.sha256()
        for offset in range(0, shard.bytes, PIECE_BYTES):
            if running.stopped.is_set() or not threading.main_thread().is_alive():
                raise StoreError(f"{self.base}/{shard.name}: the store was closed while it was fetched")
            piece = self.remote.read(shard.name, offset, min(PIECE_BYTES, shard.bytes - offset))
            digest.update(piece)
            out.write(piece)
        return digest.hexdigest()

    def _dropped(self, name: str) -> None:
        if time.monotonic() - self._running.get().used.get(name, -FRESH_S) >= FRESH_S:
            self._forget(name)

    def _forget(self, name: str) -> None:
        self._local.forget(name)
        self._running.get().used.pop(name, None)
