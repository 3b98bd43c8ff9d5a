"""The connections of one HTTP store in one process: urllib3's pools, and a way to end them at once.

A thread that waits for a server cannot be interrupted, but its socket can be shut from any other thread, and
then it returns. A second descriptor of each socket is kept for that from the moment when it is made, since
during a TLS handshake nobody else holds one. What the environment says of proxies, certificates and
credentials is read when the first request is made, and again when a server refuses them: tokens expire.
"""

from __future__ import annotations

import errno
import http.client
import os
import socket
import threading
import time
from contextlib import suppress
from functools import cached_property
from typing import Any

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import ConnectTimeoutError, NameResolutionError, NewConnectionError
from urllib3.util import wait_for_write

from maskshards.shards.storage.http_access import Access, trusted
from maskshards.shards.storage.retry import RetrySettings

LOOK_UP_S = 0.5  # while a connection is made
KEPT_PER_HOST = 64  # idle connections; several threads of a loader read for several samples each


class Connections:
    """Pools by proxy. All methods may be called from several threads."""

    def __init__(self, settings: RetrySettings) -> None:
        self.stopped = threading.Event()
        self._stall_s, self.head_s = settings.stall_s, settings.total_s
        self._managers: dict[str, urllib3.PoolManager] = {}
        self._sockets: dict[int, socket.socket] = {}  # by connection
        self._lock = threading.Lock()

    def get(self, url: str, headers: dict[str, str]) -> urllib3.BaseHTTPResponse:
        """The answer to one GET: its head; the body waits to be read. urllib3's errors, or StoreError."""
        access = self.access
        query = access.query_for(url)
        target = f"{url}{'&' if '?' in url else '?'}{query}" if query else url
        return self._manager(url).request(
            "GET",
            target,
            headers={"Accept-Encoding": "identity", **access.headers_for(url), **headers},
            preload_content=False,
            decode_content=False,
            redirect=False,
        )

    def close(self) -> None:
        """End every request under way, in whatever thread and state, and let go of all connections."""
        self.stopped.set()
        with self._lock:
            sockets, managers = list(self._sockets.values()), list(self._managers.values())
        for kept in sockets:
            with suppress(OSError):  # its thread was quicker
                kept.shutdown(socket.SHUT_RDWR)
        for manager in managers:
            for key in manager.pools.keys():
                pool = manager.pools.get(key)
                if pool is not None:
                    pool.close()

    def watch(self, connection: object, kept: socket.socket) -> None:
        """Remember a socket that is about to be used."""
        with self._lock:
            self._sockets[id(connection)] = kept
            if self.stopped.is_set():
                kept.shutdown(socket.SHUT_RDWR)

    def unwatch(self, connection: object) -> None:
        """Its connection was closed."""
        with self._lock:
            kept = self._sockets.pop(id(connection), None)
        if kept is not None:
            kept.close()

    @cached_property
    def access(self) -> Access:
        """What the environment said when it was last read."""
        return Access.from_environment()

    def renewed(self, access: Access) -> bool:
        """Whether there are other credentials than those of `access`, which a server has just refused."""
        with self._lock:
            if self.access is access:
                found = Access.from_environment()
                if found == access:
                    return False
                self.access = found
            return True

    @cached_property
    def _trusted(self) -> Any:
        return trusted()

    def _manager(self, url: str) -> urllib3.PoolManager:
        proxy, proxy_headers = self.access.proxy_for(url) or ("", {})
        kind = "https" if url.startswith("https:") or proxy.startswith("https:") else "http"
        with self._lock:
            manager = self._managers.get(kind + proxy)
        if manager is not None:
            return manager
        settings: dict[str, Any] = {
            "maxsize": KEPT_PER_HOST,
            "retries": False,
            "timeout": urllib3.Timeout(connect=self._stall_s, read=self._stall_s),
        }
        if kind == "https":  # reading the authorities takes a while
            settings["ssl_context"] = self._trusted
        if proxy:
            manager = urllib3.ProxyManager(proxy, proxy_headers=proxy_headers, **settings)
        else:
            manager = urllib3.PoolManager(**settings)
        manager.pool_classes_by_scheme = _watched_pools(self)
        with self._lock:
            return self._managers.setdefault(kind + proxy, manager)


def _watched_pools(connections: Connections) -> dict[str, type[urllib3.HTTPConnectionPool]]:
    """urllib3's two kinds of pools, with connections that `connections` can end."""

    class Answer(_Answer):
        head_s = connections.head_s

    class Http(_Watched, HTTPConnection):
        owner, response_class = connections, Answer

    class Https(_Watched, HTTPSConnection):
        owner, response_class = connections, Answer

    class HttpPool(urllib3.HTTPConnectionPool):
        ConnectionCls = Http

    class HttpsPool(urllib3.HTTPSConnectionPool):
        ConnectionCls = Https

    return {"http": HttpPool, "https": HttpsPool}


class _Answer(http.client.HTTPResponse):
    """An answer whose head comes in time or is an error: a byte now and then would end no socket's wait."""

    head_s: float

    def begin(self) -> None:
        raw: Any = self.fp.raw
        read, deadline = raw.readinto, time.monotonic() + self.head_s

        def in_time(buffer: object) -> int | None:
            if time.monotonic() > deadline:
                raise TimeoutError("the head of the answer did not come in time")
            num_bytes: int | None = read(buffer)
            return num_bytes

        raw.readinto = in_time
        try:
            super().begin()
        finally:
            del raw.readinto


class _Watched(HTTPConnection):
    """A connection whose socket its owner can shut, also while it is being connected."""

    owner: Connections

    def _new_conn(self) -> socket.socket:
        """In place of urllib3's: that one makes its socket where nobody can reach it."""
        try:
            found = socket.getaddrinfo(self._dns_host, self.port, type=socket.SOCK_STREAM)
        except socket.gaierror as error:
            raise NameResolutionError(self.host, self, error) from error
        failure: OSError | None = None
        for family, kind, protocol, _, address in found:
            made = socket.socket(family, kind, protocol)
            try:
                self.owner.watch(self, made.dup())
                for option in self.socket_options or ():
                    made.setsockopt(*option)
                self._connect(made, address)
                return made
            except OSError as error:
                failure = error
                made.close()
                self.owner.unwatch(self)
        if isinstance(failure, TimeoutError):
            raise ConnectTimeoutError(self, f"no connection to {self.host} in time") from failure
        raise NewConnectionError(self, str(failure)) from failure

    def _connect(self, made: socket.socket, address: Any) -> None:
        """Connect, looking up now and then: a socket that is not connected yet cannot be shut."""
        made.settimeout(0)
        failed, slices = made.connect_ex(address), max(1, round(float(self.timeout or 0) / LOOK_UP_S))
        while failed == errno.EINPROGRESS:
            if self.owner.stopped.is_set() or slices == 0:
                raise TimeoutError("the store was closed" if slices else "timed out")
            slices -= 1
            if wait_for_write(made, LOOK_UP_S):
                failed = made.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if failed:
            raise OSError(failed, os.strerror(failed))
        made.settimeout(self.timeout)

    def close(self) -> None:
        try:
            super().close()
        finally:
            self.owner.unwatch(self)
