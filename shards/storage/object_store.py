"""Ranges of files in object stores, through fsspec: s3:// (s3fs), gs:// (gcsfs), hf:// (huggingface_hub).

The list of schemes is closed, so that no URL can chain file systems, start a program or run code. Credentials
are found by those libraries in their usual places; they never stand in a URL here.
"""

from __future__ import annotations

import threading
from typing import Any

from maskshards.shards.errors import StoreError
from maskshards.shards.storage.base import SCHEME, Store, checked_name
from maskshards.shards.storage.retry import PATIENT, RetrySettings, Transient, with_retries

PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "hf": "huggingface_hub", "memory": "fsspec"}


class CloudStore(Store):
    """The files below a URL that fsspec understands."""

    num_connections = 8

    def __init__(self, base: str, settings: RetrySettings = PATIENT) -> None:
        scheme = SCHEME.match(base)
        if scheme is None or scheme[1] not in PACKAGES or "::" in base:
            raise StoreError(
                f"{base}: not a place that shards are read from; use a folder, http(s), s3, gs or hf"
            )
        if not base[scheme.end() :].strip("/"):
            raise StoreError(f"{base}: name a bucket or repository and a folder in it")
        self.base, self.settings, self._scheme = base.rstrip("/"), settings, scheme[1]
        self._start()

    def _start(self) -> None:
        self._system: Any = None
        self._lock = threading.Lock()
        self._stopped = threading.Event()

    def __getstate__(self) -> tuple[str, RetrySettings]:
        return self.base, self.settings

    def __setstate__(self, state: tuple[str, RetrySettings]) -> None:
        self.__init__(*state)  # type: ignore[misc]

    def read(self, name: str, offset: int, size: int) -> bytes:
        if size == 0:
            return b""
        path = self._path(name)

        def attempt() -> bytes:
            data = self._guarded(lambda: self._open().cat_file(path, start=offset, end=offset + size), path)
            if len(data) != size:
                raise Transient(f"{len(data)} bytes came for a range of {size}")
            return data

        return with_retries(attempt, path, self.settings, self._stopped)

    def size(self, name: str) -> int:
        path = self._path(name)
        found = with_retries(
            lambda: self._guarded(lambda: self._open().info(path)["size"], path),
            path,
            self.settings,
            self._stopped,
        )
        if not isinstance(found, int):
            raise StoreError(f"{path}: its size is not known there ({found!r})")
        return found

    def close(self) -> None:
        self._stopped.set()
        self._stopped = threading.Event()

    def again(self, name: str) -> bool:
        return True

    def _path(self, name: str) -> str:
        return f"{self.base}/{checked_name(name)}"

    def _open(self) -> Any:
        with self._lock:
            if self._system is None:
                import fsspec

                try:
                    self._system = fsspec.filesystem(self._scheme)
                except ImportError as error:
                    package = PACKAGES[self._scheme]
                    raise StoreError(f"{self._scheme}:// needs {package}: pip install {package}") from error
            return self._system

    @staticmethod
    def _guarded(request: Any, path: str) -> Any:
        try:
            return request()
        except (FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError) as error:
            raise StoreError(
                f"{path} cannot be read ({type(error).__name__}: {error}); is it right?"
            ) from error
        except StoreError:
            raise
        except (OSError, EOFError) as error:
            raise Transient(f"{type(error).__name__}: {error}") from error
        except Exception as error:  # client libraries have errors of their own, such as missing credentials
            raise StoreError(f"{path} cannot be read ({type(error).__name__}: {error})") from error
