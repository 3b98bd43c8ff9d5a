"""A value that each process makes for itself: connections, locks and threads do not survive a fork.

What a fork brought along is kept and never touched: closing it would end the parent's connection, and a lock
may be held by a thread that does not exist here. A value whose owner was dropped is closed when the next one
is made, not while the owner is collected: that happens anywhere in a consumer's code, where an interrupt
would be lost and a lock may be held. Until then only a built-in function has run.
"""

from __future__ import annotations

import itertools
import os
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any, ClassVar, Generic, TypeVar

Value = TypeVar("Value")


class _Owner(weakref.ref[Any]):
    """A PerProcess, and the number by which its values are known."""

    __slots__ = ("number",)
    number: int


class PerProcess(Generic[Value]):
    """`make()` of this process, made when it is first asked for. Safe to use from several threads."""

    _numbers = itertools.count()
    _owners: ClassVar[dict[int, _Owner]] = {}
    _values: ClassVar[dict[tuple[int, int], tuple[Any, Callable[[Any], object]]]] = {}
    _dropped: ClassVar[deque[_Owner]] = deque()

    def __init__(self, make: Callable[[], Value], close: Callable[[Value], object]) -> None:
        self._make, self._close = make, close
        owner = _Owner(self, self._dropped.append)
        self._number = owner.number = next(self._numbers)
        self._owners[self._number] = owner

    def get(self) -> Value:
        """This process's value."""
        key = self._number, os.getpid()
        kept = self._values.get(key)
        if kept is None:
            self._close_dropped()
            # Two threads may both make one; the first to say so wins.
            kept = self._values.setdefault(key, (self._make(), self._close))
        value: Value = kept[0]
        return value

    def close(self) -> None:
        """Close this process's value, if it was made; the next `get` makes another."""
        kept = self._values.pop((self._number, os.getpid()), None)
        if kept is not None:
            self._close(kept[0])

    @classmethod
    def _close_dropped(cls) -> None:
        while cls._dropped:
            number = cls._dropped.popleft().number
            cls._owners.pop(number, None)
            kept = cls._values.pop((number, os.getpid()), None)
            if kept is not None:
                kept[1](kept[0])
