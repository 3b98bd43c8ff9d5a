"""What `--out` names: a local folder or a URL, whether it may be built in now, and what it holds."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

from maskshards.preprocess.destinations.local import BUILD_FOLDER, PLAN_FILE, Destination, LocalDestination
from maskshards.preprocess.destinations.lock import build_lock
from maskshards.preprocess.errors import BuildError
from maskshards.shards.format.manifest import MANIFEST_NAME


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

    def tidy(self) -> None:
        """Remove the scratch folder of `root`, which is empty once a build has ended."""
        if not self.is_url:
            with suppress(OSError):  # there is none, or it holds something of somebody's
                (Path(self.out) / BUILD_FOLDER).rmdir()

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
        return [self.split(name) for name in self._splits_with(PLAN_FILE)]

    def complete(self) -> list[Destination]:
        """The splits that are published, by name."""
        return [self.split(name) for name in self._splits_with(MANIFEST_NAME)]

    def _splits_with(self, file: str) -> list[str]:
        """Names of the splits that hold `file`, sorted; an object store is listed, so any name is found."""
        if not self.is_url:
            return sorted(path.relative_to(self.out).parts[0] for path in Path(self.out).glob(f"*/{file}"))
        parts = (name.partition("/") for name in _objects(self.out.rstrip("/")).names())
        return sorted(split for split, _, rest in parts if rest == file)


def _objects(url: str) -> Destination:
    """Its module loads an event loop, which folders need not wait for."""
    from maskshards.preprocess.destinations.object_store import ObjectDestination

    return ObjectDestination(url)
