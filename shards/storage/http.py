"""Ranges of files on a web server, each answer checked before a byte of it is believed.

A good answer is 206 with exactly the range that was asked for. A page of HTML with status 200, another
Content-Length or Content-Range, a body that ends early or trickles is none of that. What may pass (5xx, 429,
cut or stalled connections) is tried again; what will not (404, 403, a server without ranges) is an error at
once. Redirects are followed a few times, never from https to http, and no environment variable changes where
a request goes.
"""

from __future__ import annotations

import http.client
import re
import threading
import time
from urllib.parse import urljoin, urlsplit, urlunsplit

from maskshards.shards.errors import StoreError
from maskshards.shards.storage.base import Store, checked_name
from maskshards.shards.storage.retry import PATIENT, RetrySettings, Transient, with_retries

MAX_REDIRECTS = 4
PASSING = {408, 425, 429, 500, 502, 503, 504}  # statuses that are worth another attempt
REDIRECTS = {301, 302, 303, 307, 308}
CHUNK_BYTES = 1 << 18
MAX_CONTENT_BYTES = 1 << 30  # of one range; larger files are read in pieces
CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


class HttpStore(Store):
    """The files below an http:// or https:// URL. Threads share kept connections."""

    num_connections = 8

    def __init__(self, base: str, settings: RetrySettings = PATIENT) -> None:
        self._start()
        parts = urlsplit(base)
        if parts.username is not None:
            raise StoreError(
                f"the URL at {parts.hostname} holds a user name; secrets do not belong into a URL"
            )
        if parts.query or parts.fragment or not parts.hostname:
            raise StoreError(f"{base}: a split's URL has a host, and no query or fragment")
        self.base, self.settings = base.rstrip("/"), settings

    def _start(self) -> None:
        self._idle: list[tuple[tuple[str, str], http.client.HTTPConnection]] = []
        self._lock = threading.Lock()
        self._stopped = threading.Event()

    def __getstate__(self) -> tuple[str, RetrySettings]:
        return self.base, self.settings

    def __setstate__(self, state: tuple[str, RetrySettings]) -> None:
        self.base, self.settings = state
        self._start()

    def read(self, name: str, offset: int, size: int) -> bytes:
        if size == 0:
            return b""
        if not 0 < size <= MAX_CONTENT_BYTES or offset < 0:
            raise StoreError(f"{self.base}/{name}: cannot ask for {size} bytes from {offset}")
        url = f"{self.base}/{checked_name(name)}"
        return with_retries(lambda: self._range(url, offset, size), url, self.settings, self._stopped)

    def size(self, name: str) -> int:
        url = f"{self.base}/{checked_name(name)}"
        return with_retries(lambda: self._length(url), url, self.settings, self._stopped)

    def close(self) -> None:
        self._stopped.set()
        with self._lock:
            idle, self._idle = self._idle, []
            self._stopped = threading.Event()
        for _, connection in idle:
            connection.close()

    def __del__(self) -> None:
        for _, connection in self._idle:
            connection.close()

    def again(self, name: str) -> bool:
        return True

    def _range(self, url: str, offset: int, size: int) -> bytes:
        asked = f"bytes={offset}-{offset + size - 1}"
        deadline = time.monotonic() + self.settings.total_s + size / self.settings.slowest_bytes_per_s
        connection, place, answer = self._ask("GET", url, {"Range": asked})
        with _closing_on_error(connection):
            if answer.status == 416:
                raise StoreError(
                    f"{url} ends before byte {offset + size}; it was cut short or is another file"
                )
            if answer.status != 206:
                kind = answer.headers.get("Content-Type", "no content type")
                raise StoreError(
                    f"{url} answered a range request with status {answer.status} ({kind}), expected 206; "
                    "is the address right, and does the server support ranges?"
                )
            found = CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", ""))
            if found is None or (int(found[1]), int(found[2])) != (offset, offset + size - 1):
                end = f"; the file has {found[3]} bytes" if found else ""
                raise StoreError(
                    f"{url}: asked for {asked}, got {answer.headers.get('Content-Range')!r}{end}"
                )
            if answer.headers.get("Content-Length", str(size)) != str(size):
                raise Transient(
                    f"Content-Length {answer.headers['Content-Length']} for a range of {size} bytes"
                )
            body = self._body(answer, size, deadline)
            answer.read()  # nothing is left, but only now does the connection count as free
        self._keep(place, connection, answer)
        return body

    def _body(self, answer: http.client.HTTPResponse, size: int, deadline: float) -> bytes:
        """Exactly `size` bytes; Transient where fewer or more come, or too slowly."""
        body = bytearray()
        while len(body) <= size:
            try:
                # One byte more than promised is asked for at the end, so that a longer body is noticed.
                piece = answer.read1(min(CHUNK_BYTES, size + 1 - len(body)))
            except (OSError, http.client.HTTPException) as error:
                raise Transient(f"the body broke off after {len(body)} of {size} bytes ({error})") from error
            if not piece:
                break
            body += piece
            if time.monotonic() > deadline:
                raise Transient(f"only {len(body)} of {size} bytes came in time")
        if len(body) != size:
            raise Transient(f"the body has {len(body)} bytes or more, expected {size}")
        return bytes(body)

    def _length(self, url: str) -> int:
        connection, place, answer = self._ask("HEAD", url, {})
        with _closing_on_error(connection):
            answer.read()
            length = answer.headers.get("Content-Length", "")
            if answer.status != 200 or not length.isdigit():
                raise StoreError(
                    f"{url} answered status {answer.status} and length {length!r}, expected 200 and one"
                )
        self._keep(place, connection, answer)
        return int(length)

    def _ask(
        self, method: str, url: str, headers: dict[str, str]
    ) -> tuple[http.client.HTTPConnection, tuple[str, str], http.client.HTTPResponse]:
        """Send the request, follow redirects; Transient or StoreError for statuses that mean failure."""
        target = url
        for _ in range(MAX_REDIRECTS):
            parts = urlsplit(target)
            place = (parts.scheme, parts.netloc)
            path = urlunsplit(("", "", parts.path or "/", parts.query, ""))
            connection, answer = self._answer(place, method, path, headers)
            with _closing_on_error(connection):
                if answer.status in PASSING:
                    raise Transient(f"status {answer.status} {answer.reason}")
                if answer.status in {401, 403, 404, 410}:
                    raise StoreError(f"{url} answered {answer.status} {answer.reason}; is the address right?")
            if answer.status not in REDIRECTS:
                return connection, place, answer
            connection.close()
            target = _redirected(target, answer.headers.get("Location", ""))
        raise StoreError(f"{url} was redirected more than {MAX_REDIRECTS} times, at last to {target}")

    def _answer(
        self, place: tuple[str, str], method: str, path: str, headers: dict[str, str]
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        """Ask over a kept connection, which its server may have closed meanwhile, or else over a new one."""
        kept = self._kept(place)
        for connection in (kept, self._connection(place)) if kept else (self._connection(place),):
            try:
                connection.request(method, path, headers={"Accept-Encoding": "identity", **headers})
                return connection, connection.getresponse()
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                if connection is not kept or isinstance(error, TimeoutError):
                    raise Transient(f"no answer ({type(error).__name__}: {error})") from error
        raise AssertionError("unreachable: a new connection returns or raises")

    def _kept(self, place: tuple[str, str]) -> http.client.HTTPConnection | None:
        with self._lock:
            for number, (kept_place, connection) in enumerate(self._idle):
                if kept_place == place:
                    del self._idle[number]
                    return connection
        return None

    def _connection(self, place: tuple[str, str]) -> http.client.HTTPConnection:
        scheme, host = place
        kind = http.client.HTTPSConnection if scheme == "https" else http.client.HTTPConnection
        return kind(host, timeout=self.settings.stall_s)

    def _keep(
        self, place: tuple[str, str], connection: http.client.HTTPConnection, answer: http.client.HTTPResponse
    ) -> None:
        """Keep the connection for the next request if the answer was read to its end."""
        with self._lock:
            if answer.isclosed() and len(self._idle) < 2 * self.num_connections:
                self._idle.append((place, connection))
                return
        connection.close()


class _closing_on_error:
    """Closes a connection when its request fails: nothing of a bad answer may be taken for the next one."""

    def __init__(self, connection: http.client.HTTPConnection) -> None:
        self._connection = connection

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is not None:
            self._connection.close()


def _redirected(url: str, location: str) -> str:
    target = urljoin(url, location)
    old, new = urlsplit(url).scheme, urlsplit(target).scheme
    if new not in ("http", "https") or (old == "https" and new != "https") or not location:
        raise StoreError(f"{url} redirects to {location!r}, which is not followed")
    return target
