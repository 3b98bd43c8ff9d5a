"""Files in object stores, through fsspec: s3:// (s3fs), gs:// (gcsfs), hf:// (huggingface_hub).

The list of schemes is closed, so that no URL can chain file systems, start a program or run code. Credentials
are found by those libraries in their usual places; they never stand in a URL here. Which driver, which errors
may pass and how often a request is tried is decided here, for reading and for building alike.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeVar

from maskshards.shards.errors import StoreError
from maskshards.shards.storage.base import MOST_READS, SCHEME, Store, checked_name
from maskshards.shards.storage.retry import PATIENT, RetrySettings, Transient, with_retries

PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "hf": "huggingface_hub", "memory": "fsspec"}
READ_BYTES = 8 << 20
LOOK_UP_S = 0.5  # while an answer is waited for
LASTING = (FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError)
# Client libraries have errors of their own that share no base: by name, those that another try cannot mend.
LASTING_NAME = re.compile(r"Credential|Auth|Forbidden|Denied|NotFound|Gated|Validation|Invalid")

PASSING_STATUSES = (408, 425, 429)  # of the client's errors: too slow, too early, too many

Result = TypeVar("Result")


def scheme_of(url: str) -> str:
    """The URL's scheme; StoreError unless it is a plain URL of an object store, with a bucket."""
    found = SCHEME.match(url)
    if found is None or found[1] not in PACKAGES or "::" in url:
        raise StoreError(f"{url}: not a place that shards are read from; use a folder, http(s), s3, gs or hf")
    if not url[found.end() :].strip("/"):
        raise StoreError(f"{url}: name a bucket or repository and a folder in it")
    return found[1]


def file_system(url: str) -> Any:
    """The fsspec driver of a URL, kept by fsspec for each process; StoreError where it is not installed."""
    import fsspec

    scheme = scheme_of(url)
    try:
        return fsspec.filesystem(scheme, use_listings_cache=False)
    except ImportError as error:
        package = PACKAGES[scheme]
        raise StoreError(f"{url}: {scheme}:// needs {package}: pip install {package} ({error})") from error


def tried(
    request: Callable[[Any], Result],
    url: str,
    settings: RetrySettings = PATIENT,
    stopped: threading.Event | None = None,
) -> Result:
    """`request(driver)`, tried again while its failure may pass; StoreError that names the URL in the end.

    FileNotFoundError is an answer, and passes through.
    """

    def attempt() -> Result:
        try:
            return request(file_system(url))
        except (StoreError, Transient, FileNotFoundError):
            raise
        except Exception as error:
            what = f"{type(error).__name__}: {error}"
            lasting = isinstance(error, LASTING) or LASTING_NAME.search(type(error).__name__)
            if lasting or _refused(error):
                raise StoreError(f"{url} refuses ({what}); is it right, and may you use it?") from error
            raise Transient(what) from error

    return with_retries(attempt, url, settings, stopped or threading.Event())


def _refused(error: Exception) -> bool:
    """Whether a server's status says that another try is refused too, whatever type a library gives it."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return isinstance(status, int) and 400 <= status < 500 and status not in PASSING_STATUSES


def sha256_of(files: Any, path: str) -> str:
    """Hex digest of a whole object, read in pieces."""
    digest = hashlib.sha256()
    with files.open(path, "rb", block_size=READ_BYTES, cache_type="readahead") as file:
        while block := file.read(READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


class CloudStore(Store):
    """The files below a URL that fsspec understands."""

    num_connections, is_remote = 8, True

    def __init__(self, base: str, settings: RetrySettings = PATIENT) -> None:
        scheme_of(base)
        self.base, self.settings = base.rstrip("/"), settings
        self._stopped = threading.Event()

    def __getstate__(self) -> tuple[str, RetrySettings]:
        return self.base, self.settings

    def __setstate__(self, state: tuple[str, RetrySettings]) -> None:
        self.__init__(*state)  # type: ignore[misc]

    def read(self, name: str, offset: int, size: int) -> bytes:
        if size == 0:
            return b""
        data = self._ask(name, size, "cat_file", start=offset, end=offset + size)
        return bytes(data)

    def size(self, name: str) -> int:
        found = self._ask(name, 0, "info")["size"]
        if not isinstance(found, int):
            raise StoreError(f"{self.base}/{name}: its size is not known there ({found!r})")
        return found

    def close(self) -> None:
        stopped, self._stopped = self._stopped, threading.Event()
        stopped.set()

    def again(self, name: str, num_reads: int) -> bool:
        return num_reads < MOST_READS

    def _ask(self, name: str, size: int, method: str, **words: int) -> Any:
        """The answer of a driver's method about one file; `size` bytes of it if that is not 0."""
        path, stopped = f"{self.base}/{checked_name(name)}", self._stopped
        patience_s = self.settings.total_s + size / self.settings.slowest_bytes_per_s

        def request(files: Any) -> Any:
            answer = _answer(files, method, path, words, time.monotonic() + patience_s, stopped)
            if size and len(answer) != size:
                raise Transient(f"{len(answer)} bytes came for a range of {size}")
            return answer

        try:
            return tried(request, path, self.settings, stopped)
        except FileNotFoundError as error:
            raise StoreError(f"{path} cannot be read (FileNotFoundError: {error}); is it right?") from error


def _answer(
    files: Any, method: str, path: str, words: dict[str, int], deadline: float, stopped: threading.Event
) -> Any:
    """Call the driver, and stop waiting for it at the deadline or once `stopped`."""
    if getattr(files, "async_impl", False):
        coming = asyncio.run_coroutine_threadsafe(getattr(files, f"_{method}")(path, **words), files.loop)
    else:
        coming = _aside(partial(getattr(files, method), path, **words))
    try:
        while not coming.done():
            if stopped.is_set() or time.monotonic() > deadline:
                raise Transient("the answer did not come in time")
            try:
                coming.exception(LOOK_UP_S)
            except TimeoutError:
                continue
        return coming.result()
    finally:
        coming.cancel()


def _aside(call: Callable[[], Any]) -> Future[Any]:
    """The result of a call that cannot be interrupted, in a thread that may be left to itself."""
    coming: Future[Any] = Future()
    coming.set_running_or_notify_cancel()

    def run() -> None:
        try:
            coming.set_result(call())
        except BaseException as error:  # raised where the result is asked for
            coming.set_exception(error)

    threading.Thread(target=run, name="maskshards-driver", daemon=True).start()
    return coming
