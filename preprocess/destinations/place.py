"""What `--out` names: a local folder or a URL, whether it may be built in now, and what it holds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from maskshards.preprocess.destinations.local import PLAN_FILE, Destination, LocalDestination
from maskshards.preprocess.destinations.lock import build_lock
from maskshards.preprocess.errors import BuildError


@dataclass(frozen=True, slots=True)
class Place:
    """A destination as a whole; its splits are one step below."""

    out: str

    @property
    def is_url(self) -> bool:
        """Whether it is an object store rather than a folder."""
        return "://" in self.out

    def split(self, name: str) -> Destination:
        """Where one split goes."""
        if self.is_url:
            return _objects(f"{self.out.rstrip('/')}/{name}")
        return LocalDestination(Path(self.out) / name)

    def root(self) -> Destination:
        """Where the files go that describe all splits."""
        return _objects(self.out.rstrip("/")) if self.is_url else LocalDestination(Path(self.out))

    def lock(self, part: tuple[int, int] | None = None) -> AbstractContextManager[None]:
        """Keep other builders out while this one works; object stores have no locks and need none."""
        return nullcontext() if self.is_url else build_lock(Path(self.out), part)

    def check_workers(self, workers: int) -> None:
        """BuildError where worker processes could not see the destination."""
        if self.out.startswith("memory://") and workers > 1:
            raise BuildError(
                f"{self.out} exists in this process only, so workers cannot fill it; use --workers 1"
            )

    def unfinished(self) -> list[Destination]:
        """The splits with a plan but no end, by name."""
        return [self.split(name) for name in sorted(self._splits_with_a_plan())]

    def _splits_with_a_plan(self) -> Iterator[str]:
        if self.is_url:
            for name in _objects(self.out.rstrip("/")).names():
                split, _, rest = name.partition("/")
                if rest == PLAN_FILE:
                    yield split
        else:
            for path in Path(self.out).glob(f"*/{PLAN_FILE}"):
                yield path.parent.parent.name


def _objects(url: str) -> Destination:
    """Its module loads an event loop, which folders need not wait for."""
    from maskshards.preprocess.destinations.object_store import ObjectDestination

    return ObjectDestination(url)
