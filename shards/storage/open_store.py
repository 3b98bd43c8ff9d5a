"""From a place's name to its store; the client of a network is loaded when a URL asks for it."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import unquote

from maskshards.shards.storage.base import SCHEME, Store
from maskshards.shards.storage.local import LocalStore


def folder_of(base: str | Path) -> Path:
    """The folder of a place that is no URL of another kind than file://; `~` is the user's own."""
    path = str(base).removeprefix("file://")
    if path != str(base) and not os.path.exists(path):
        path = unquote(path)  # as Path.as_uri writes it
    return Path(os.path.expanduser(path))


def open_store(base: str | Path) -> Store:
    """The store of a folder or of a file://, http(s)://, s3://, gs:// or hf:// URL; no connection is made."""
    scheme = SCHEME.match(str(base))
    if scheme is None or scheme[1] == "file":
        # Absolute: the working directory may change, and is another one in other processes.
        return LocalStore(folder_of(base).absolute())
    if scheme[1] in ("http", "https"):
        from maskshards.shards.storage.http import HttpStore

        return HttpStore(str(base))
    from maskshards.shards.storage.object_store import CloudStore

    return CloudStore(str(base))
