"""From a place's name to its store; the client of a network is loaded when a URL asks for it."""

from __future__ import annotations

from pathlib import Path

from maskshards.shards.storage.base import SCHEME, Store
from maskshards.shards.storage.local import LocalStore


def folder_of(base: str | Path) -> Path:
    """The folder of a place that is no URL of another kind than file://; `~` is the user's own."""
    folder = Path(str(base).removeprefix("file://"))
    try:
        return folder.expanduser()
    except RuntimeError:  # no such user
        return folder


def open_store(base: str | Path) -> Store:
    """The store of a folder or of a file://, http(s)://, s3://, gs:// or hf:// URL; no connection is made."""
    scheme = SCHEME.match(str(base))
    if scheme is None or scheme[1] == "file":
        return LocalStore(folder_of(base))
    if scheme[1] in ("http", "https"):
        from maskshards.shards.storage.http import HttpStore

        return HttpStore(str(base))
    from maskshards.shards.storage.object_store import CloudStore

    return CloudStore(str(base))
