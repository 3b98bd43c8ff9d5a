"""Every way in which shards can be wrong, as types that name the place.

A message says what is wrong, where (shard, key or file), what was found, what was expected and what to do.
"""

from __future__ import annotations

import errno
import os

RAISE, REPLACE = POLICIES = ("raise", "replace")  # what a reader does about a SampleError


class ShardError(ValueError):
    """Something is wrong with a shard data set; the base of all errors below."""


class ManifestError(ShardError):
    """The manifest or the sample index is missing, unreadable or contradicts itself."""


class SampleError(ShardError):
    """One sample is wrong. `shard` and `key` say which one ('' where it cannot be known)."""

    def __init__(self, what: str, *, shard: str = "", key: str = "") -> None:
        place = ", ".join(part for part in (shard, f"sample {key!r}" if key else "") if part)
        super().__init__(f"{place}: {what}" if place else what)
        self.what, self.shard, self.key = what, shard, key


class RunsError(ShardError):
    """Labelled runs that break the format; the caller, who knows it, adds shard and key."""


class StoreError(OSError):
    """A shard or manifest could not be fetched, or is not what the manifest promised."""


class UnreachableError(StoreError):
    """The place does not answer at all, or never well: asking it for another file would go the same way."""


def printable(text: str, kept: str = "") -> str:
    """Text whose characters a terminal shows and none of which it obeys.

    Escapes stand for control characters, turned writing directions and bytes that are no UTF-8. Those in
    `kept` stay as they are.
    """
    shown = (c if c.isprintable() or c in kept else c.encode("unicode_escape").decode() for c in text)
    return "".join(shown)


def counted(number: int, one: str, many: str = "") -> str:
    """`1 shard`, `0 shards`: a count for people with its noun, and with its verb where `many` is given."""
    ending = "es" if one.endswith("s") else "s"
    return f"{number} {one if number == 1 else many or one + ending}"


def error_text(error: Exception) -> str:
    """What a terminal shows of an error, lines kept; the system's own begin with the file."""
    text = str(error)
    if isinstance(error, OSError) and isinstance(error.filename, str | bytes) and error.strerror:
        text = f"{os.fsdecode(error.filename)}: {error.strerror}"
    if isinstance(error, OSError) and error.errno == errno.EMFILE:
        text += "; this process may open no more: raise ulimit -n"
    return printable(text, kept="\n")
