"""Ranges of files on a web server, each answer checked before a byte of it is believed.

A good answer is 206 with exactly the range that was asked for. A page of HTML with status 200, another
Content-Length or Content-Range, a compressed body, one that ends early or trickles is none of that. What may
pass (5xx, 429, cut or stalled connections) is tried again; what will not (a certificate, a port, 401, 403,
404, a server without ranges) is an error at once. Redirects are followed a few times, never off https.
Connections, proxies and credentials are those of `http_connections` and `http_access`. There is no HEAD: the
size of a file is read off a range of one byte, which signed URLs and gateways answer too.
"""

from __future__ import annotations

import re
import socket
import ssl
import time
from contextlib import closing
from urllib.parse import quote, urljoin, urlsplit

import urllib3
from urllib3.exceptions import HTTPError, ProxyError, SSLError

from maskshards.shards.errors import StoreError, UnreachableError
from maskshards.shards.storage.base import MOST_READS, Store, checked_name
from maskshards.shards.storage.http_access import HELP, QUERY
from maskshards.shards.storage.http_connections import Connections
from maskshards.shards.storage.per_process import PerProcess
from maskshards.shards.storage.retry import PATIENT, RetrySettings, Transient, with_retries

MAX_REDIRECTS = 4
PASSING = {408, 425, 429, 500, 502, 503, 504}  # statuses that are worth another attempt
REFUSED = {401, 403}  # statuses of credentials that are wrong, or have expired
REDIRECTS = {301, 302, 303, 307, 308}
LASTING = {
    401: f"it wants a login or token: {HELP}",
    403: f"it refuses: a token or right is missing, or a signature has expired; {HELP}",
    404: "is the address right?",
    407: "the proxy asks for a login: put it into HTTPS_PROXY=http://NAME:PASSWORD@HOST:PORT",
    410: "is the address right?",
}
CHUNK_BYTES = 1 << 18
MAX_CONTENT_BYTES = 1 << 30  # of one range; larger files are read in pieces
CONTENT_RANGE = re.compile(r"\s*bytes\s+(\d{1,19})-(\d{1,19})/(\d{1,19}|\*)\s*", re.IGNORECASE | re.ASCII)
NAME = "{name}"


class HttpStore(Store):
    """The files below an http:// or https:// URL, or at a URL with `{name}` where a file's name belongs."""

    num_connections, is_remote = 8, True

    def __init__(self, base: str, settings: RetrySettings = PATIENT, *, answered: bool = False) -> None:
        self._template, self.settings = _checked_url(base), settings
        self._answered = answered  # whether there is a server at all, so that waiting for it makes sense
        self.base = shown(self._template.removesuffix(f"/{NAME}"))
        self._connections = PerProcess(lambda: Connections(settings), Connections.close)

    def __getstate__(self) -> tuple[str, RetrySettings, bool]:
        return self._template, self.settings, self._answered

    def __setstate__(self, state: tuple[str, RetrySettings, bool]) -> None:
        self.__init__(state[0], state[1], answered=state[2])  # type: ignore[misc]

    def read(self, name: str, offset: int, size: int) -> bytes:
        if size == 0:
            return b""
        if not 0 < size <= MAX_CONTENT_BYTES or offset < 0:
            raise StoreError(f"{self.base}/{name}: cannot ask for {size} bytes from {offset}")
        return self._range(name, offset, size)[0]

    def size(self, name: str) -> int:
        found = self._range(name, 0, 1, may_be_empty=True)[1]
        if not found.isdigit():
            raise StoreError(f"{self._url(name)}: the server does not say how many bytes it has ({found})")
        return int(found)

    def close(self) -> None:
        self._connections.close()

    def again(self, name: str, num_reads: int) -> bool:
        return num_reads < MOST_READS

    def _url(self, name: str) -> str:
        return self._template.replace(NAME, checked_name(name))

    def _range(self, name: str, offset: int, size: int, may_be_empty: bool = False) -> tuple[bytes, str]:
        """(the bytes, the size of the whole file as the server says it)."""
        url, connections = self._url(name), self._connections.get()

        def attempt() -> tuple[bytes, str]:
            access = connections.access
            deadline = time.monotonic() + self.settings.total_s + size / self.settings.slowest_bytes_per_s
            with closing(self._ask(connections, url, f"bytes={offset}-{offset + size - 1}")) as answer:
                found = answer.headers.get("Content-Range", "")
                if answer.status == 416 and may_be_empty and found == "bytes */0":
                    return b"", "0"
                if answer.status in REFUSED and connections.renewed(access):
                    raise Transient(f"status {answer.status}; there are other credentials by now")
                total = _checked_range(shown(url), answer, offset, size)
                return _body(answer, size, deadline), total

        return with_retries(attempt, shown(url), self.settings, connections.stopped)

    def _ask(self, connections: Connections, url: str, asked: str) -> urllib3.BaseHTTPResponse:
        """Send the request, follow redirects; Transient or StoreError where there is no answer of use."""
        target = url
        for _ in range(MAX_REDIRECTS):
            try:
                answer = connections.get(target, {"Range": asked})
            except (HTTPError, OSError, ValueError) as error:
                raise _failure(shown(target), error, self._answered) from error
            self._answered = True
            if answer.status not in REDIRECTS:
                return answer
            answer.close()
            target = _redirected(target, answer.headers.get("Location", ""))
        raise StoreError(
            f"{shown(url)} was redirected more than {MAX_REDIRECTS} times, at last to {shown(target)}"
        )


def shown(url: str) -> str:
    """The URL as it may be logged: a query often holds a signature."""
    place, mark, _ = url.partition("?")
    return f"{place}?..." if mark else place


def _checked_url(base: str) -> str:
    """The URL with `{name}` in it; StoreError where it holds a secret or cannot be one."""
    try:
        parts = urlsplit(base)
        host, port = parts.hostname or "", parts.port
        encoded = host if ":" in host else host.encode("idna").decode()
    except ValueError as error:  # a port that is none; a label too long
        raise StoreError(f"{shown(base).rpartition('@')[2]}: no URL ({error})") from error
    if parts.username is not None:
        raise StoreError(f"the URL at {host} holds a user name; secrets do not belong into a URL: {HELP}")
    if not host or port == 0 or re.search(r"[\x00-\x1f\x7f]", base):
        raise StoreError(f"{shown(base)!r}: no URL of a server: it names a host, and a port from 1 to 65535")
    is_template = NAME in parts.path + parts.query
    if parts.fragment or "#" in base or ((parts.query or "?" in base) and not is_template):
        raise StoreError(
            f"{shown(base).partition('#')[0]}: a split's URL has a host, and no query or fragment; write"
            f" {NAME} where a file's name belongs, %23 for #, and see {QUERY} for signatures"
        )
    netloc = f"[{encoded}]" if ":" in encoded else encoded
    netloc += "" if port is None else f":{port}"
    # What is escaped already stays; urllib3 escapes the rest, spaces and umlauts too.
    path = parts.path if is_template else f"{parts.path.rstrip('/')}/{NAME}"
    return f"{parts.scheme}://{netloc}{path}" + (f"?{parts.query}" if parts.query else "")


def _checked_range(url: str, answer: urllib3.BaseHTTPResponse, offset: int, size: int) -> str:
    """The size of the whole file, of an answer whose head is that of exactly the range that was asked for."""
    status, headers = answer.status, answer.headers
    if status in PASSING:
        raise Transient(f"status {status} {answer.reason}", _asked_s(headers.get("Retry-After", "")))
    if status in LASTING:
        raise StoreError(f"{url} answered {status} {answer.reason}; {LASTING[status]}")
    if status == 416:
        raise StoreError(f"{url} ends before byte {offset + size}; it was cut short or is another file")
    if status != 206:
        kind = headers.get("Content-Type", "no content type")
        raise StoreError(
            f"{url} answered a range request with status {status} ({kind}), expected 206; "
            "is the address right, and does the server support ranges?"
        )
    found = CONTENT_RANGE.fullmatch(headers.get("Content-Range", ""))
    if found is None or (int(found[1]), int(found[2])) != (offset, offset + size - 1):
        told = f"asked for bytes={offset}-{offset + size - 1}, got {headers.get('Content-Range')!r}"
        if found is None or (found[3] != "*" and int(found[3]) < offset + size):
            end = f"; the file has {found[3]} bytes" if found else ""
            raise StoreError(f"{url}: {told}{end}")
        raise Transient(told)  # one machine of several, or a cache on the way, is out of order
    encoding = headers.get("Content-Encoding", "identity")
    if encoding != "identity":
        raise StoreError(f"{url} came in Content-Encoding {encoding}, expected the bytes of the file")
    if headers.get("Content-Length", str(size)) != str(size):
        raise Transient(f"Content-Length {headers['Content-Length']} for a range of {size} bytes")
    return found[3]


def _asked_s(retry_after: str) -> float:
    """Seconds that a busy server asks for, as a number or a date; 0 where it says nothing of use."""
    try:
        return float(urllib3.Retry().parse_retry_after(retry_after))
    except (HTTPError, ValueError, OverflowError):
        return 0.0


def _body(answer: urllib3.BaseHTTPResponse, size: int, deadline: float) -> bytes:
    """Exactly `size` bytes; Transient where fewer or more come, or too slowly."""
    body = bytearray()
    while len(body) <= size:
        try:
            # One byte more than promised is asked for at the end, so that a longer body is noticed.
            piece = answer.read1(min(CHUNK_BYTES, size + 1 - len(body)))
        except (HTTPError, OSError) as error:
            raise Transient(f"the body broke off after {len(body)} of {size} bytes ({error})") from error
        if not piece:
            break
        body += piece
        if time.monotonic() > deadline:
            raise Transient(f"only {len(body)} of {size} bytes came in time")
    if len(body) != size:
        raise Transient(f"the body has {len(body)} bytes or more, expected {size}")
    return bytes(body)


def _failure(url: str, error: Exception, answered: bool) -> Exception:
    """Of a request without an answer: what may pass as Transient, what will not as an error by its name."""
    if isinstance(error, StoreError):
        return error
    if isinstance(error, ValueError):  # urllib3's words for a URL that is none
        return StoreError(f"{url}: {error}")
    cause = error.original_error if isinstance(error, ProxyError) else error
    inner = cause.args[0] if isinstance(cause, SSLError) and cause.args else cause.__cause__ or cause
    reason = f"no answer ({type(inner).__name__}: {inner})"
    advice = ""
    if isinstance(inner, ssl.SSLCertVerificationError):
        reason = f"its certificate is not trusted ({inner.verify_message})"
        advice = "where an authority of your own has signed it, name its file in SSL_CERT_FILE"
    elif isinstance(inner, ssl.SSLError) and inner.reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST"):
        advice = "the server at that port speaks no TLS: http:// perhaps?"
    elif isinstance(error, ProxyError) and "Tunnel connection failed: 4" in str(cause):
        advice = "the proxy refuses: see HTTPS_PROXY=http://NAME:PASSWORD@HOST:PORT and NO_PROXY"
    elif isinstance(inner, ConnectionRefusedError) and not answered:
        who = "proxy" if isinstance(error, ProxyError) else "host"
        advice = f"nothing listens at that {who} and port; are they right?"
    elif isinstance(inner, socket.gaierror) and inner.errno == socket.EAI_NONAME and not answered:
        advice = "there is no host of that name"
    return UnreachableError(f"{url}: {reason}; {advice}") if advice else Transient(reason)


def _redirected(url: str, location: str) -> str:
    # Bytes beyond ASCII in a header arrive as Latin-1, and nearly always were UTF-8.
    try:
        target = urljoin(url, quote(location.encode("latin-1", "replace"), safe="%/:=&?~#+!$,;'@()*[]"))
        old, new = urlsplit(url).scheme, urlsplit(target).scheme
    except ValueError:  # half an address of IP version 6
        old = new = ""
    if new not in ("http", "https") or (old == "https" and new != "https") or not location:
        raise StoreError(f"{shown(url)} redirects to {shown(location)!r}, which is not followed")
    return target
