"""Where shards go: the folder of one split, written so that every name shows a whole file or nothing.

Scratch files and journals live in a folder of their own below it and vanish when the split is published.
`.build` is on the same file system as the shards, so a rename publishes.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from maskshards.preprocess.errors import BuildError
from maskshards.shards.format.index import SampleEntry
from maskshards.shards.format.manifest import Manifest, write_split
from maskshards.shards.storage.atomic_write import flush_folder, show
from maskshards.shards.storage.foreign_file import read_bytes, sha256_of

BUILD_FOLDER = ".build"
PLAN_FILE = f"{BUILD_FOLDER}/plan.json"
PARTIAL = ".partial"  # ending of files that are being written; whoever holds the build lock may delete them


class Destination(ABC):
    """The place of one split.

    Names are relative and use '/'; a name below BUILD_FOLDER is gone after `finish`.
    """

    locked: ClassVar[bool] = True  # the build lock keeps every other builder away

    @abstractmethod
    def read(self, name: str) -> bytes | None:
        """A whole small file; None where there is none."""

    @abstractmethod
    def write(self, name: str, data: bytes) -> None:
        """A whole small file, at once."""

    @abstractmethod
    def scratch(self, name: str) -> AbstractContextManager[Path]:
        """A local path to write `name` at; it is deleted on leaving unless it was published."""

    @abstractmethod
    def publish(self, path: Path, name: str, sha256: str) -> None:
        """Move a finished scratch file to its final name, durable before it is visible.

        It is checked against `sha256`.
        """

    @abstractmethod
    def sha256(self, name: str) -> str | None:
        """Digest of a file as it stands there now; None where there is none."""

    @abstractmethod
    def names(self) -> tuple[str, ...]:
        """All files, sorted, those of BUILD_FOLDER included."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Delete a file; no error where there is none."""

    @abstractmethod
    def write_split(self, manifest: Manifest, entries: Iterable[Sequence[SampleEntry]]) -> Manifest:
        """Index, then manifest, which comes back with its fingerprint: from here on the split exists."""

    @abstractmethod
    def finish(self) -> None:
        """Delete BUILD_FOLDER and everything in it."""


@dataclass(frozen=True)
class LocalDestination(Destination):
    """A folder on a file system; files are fsynced, then renamed, then the folder is fsynced."""

    folder: Path

    def read(self, name: str) -> bytes | None:
        """See Destination."""
        try:
            return read_bytes(self.folder / name, None)
        except FileNotFoundError:
            return None

    def write(self, name: str, data: bytes) -> None:
        """See Destination."""
        with self.scratch(name) as path:
            path.write_bytes(data)
            self._move(path, name)

    @contextmanager
    def scratch(self, name: str) -> Iterator[Path]:
        """See Destination.

        Parts of one build may write the same plan at the same time, hence the random name.
        """
        folder = self._build_folder()
        path = folder / f"{Path(name).name}.{os.urandom(6).hex()}{PARTIAL}"
        with _writing(self.folder / name):
            folder.mkdir(parents=True, exist_ok=True)
            try:
                yield path
            finally:
                path.unlink(missing_ok=True)

    def publish(self, path: Path, name: str, sha256: str) -> None:
        """See Destination. The scratch file was read back by the caller; a rename cannot change it."""
        self._move(path, name)

    def sha256(self, name: str) -> str | None:
        """See Destination."""
        try:
            return sha256_of(self.folder / name)
        except FileNotFoundError:
            return None

    def names(self) -> tuple[str, ...]:
        """See Destination."""
        found = (path for path in self.folder.rglob("*") if not path.is_dir())
        return tuple(sorted(path.relative_to(self.folder).as_posix() for path in found))

    def remove(self, name: str) -> None:
        """See Destination."""
        (self.folder / name).unlink(missing_ok=True)

    def write_split(self, manifest: Manifest, entries: Iterable[Sequence[SampleEntry]]) -> Manifest:
        """See Destination."""
        with _writing(self.folder):
            return write_split(self.folder, manifest, entries)

    def finish(self) -> None:
        """See Destination."""
        folder = self._build_folder()
        for name in build_files(self):
            self.remove(name)
        with suppress(FileNotFoundError):
            folder.rmdir()
            flush_folder(self.folder)

    def __str__(self) -> str:
        return str(self.folder)

    def _build_folder(self) -> Path:
        """BuildError where it is a link: the files of whoever it leads to are not ours to write or delete."""
        folder = self.folder / BUILD_FOLDER
        if folder.is_symlink():
            raise BuildError(f"{folder} is a link; remove it, or build to another folder")
        return folder

    def _move(self, path: Path, name: str) -> None:
        target = self.folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        show(path, target)


@contextmanager
def _writing(place: Path) -> Iterator[None]:
    """Say of a fault of the disk, which itself may name no file, where it was and what to do."""
    try:
        yield
    except OSError as error:
        raise OSError(
            f"{place} cannot be written: {error.strerror or error}. Finished shards are kept: make room, or"
            " see to the folder's rights, and the same command goes on from there"
        ) from error


def build_files(destination: Destination) -> list[str]:
    """What stands in BUILD_FOLDER, the plan last.

    While the plan is there, an interrupted `finish` can be repeated.
    """
    names = [name for name in destination.names() if name.startswith(f"{BUILD_FOLDER}/")]
    return sorted(names, key=lambda name: (name == PLAN_FILE, name))
