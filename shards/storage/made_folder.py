"""A folder that is made for work which may come to nothing, and then goes again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def made_folder(folder: Path) -> Iterator[None]:
    """Make `folder`, with those above it; OSError where it cannot be made.

    Afterwards those of them that were not there before go again, as far as they are empty.
    """
    fresh = [one for one in (folder, *folder.parents) if not one.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        for one in fresh:
            with suppress(OSError):  # it holds something, or was never made
                one.rmdir()
