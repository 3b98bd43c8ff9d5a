"""A split's place in an object store: s3://, gs://, hf:// or memory:// through fsspec.

Such stores have no rename worth the name, but a put shows its object whole or not at all, so every file is
finished in a local scratch folder, put once, and read back against its digest. The manifest is put last.
There is no lock: two builders of one plan put the same bytes, and a builder of another plan is refused by
the plan that lies there.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from maskshards.preprocess.destinations.local import BUILD_FOLDER, Destination, build_files
from maskshards.preprocess.errors import BuildError
from maskshards.shards.errors import StoreError
from maskshards.shards.format.index import INDEX_NAME, SampleEntry
from maskshards.shards.format.index_parquet import write_index
from maskshards.shards.format.manifest import MANIFEST_NAME, Manifest, finish_manifest
from maskshards.shards.storage.object_store import PACKAGES, file_system, sha256_of, tried
from maskshards.shards.storage.retry import PATIENT, Transient

PATIENCE = PATIENT  # as for reading
Answer = TypeVar("Answer")


class TransferError(OSError):
    """An object store did not do what it was asked, several times over."""


@dataclass(frozen=True)
class ObjectDestination(Destination):
    """The objects below one URL.

    Credentials and endpoints are those of the fsspec driver's own environment.
    """

    locked: ClassVar[bool] = False
    url: str  # without a slash at its end

    def read(self, name: str) -> bytes | None:
        """See Destination."""
        try:
            data: bytes = self._try("read", name, lambda files, path: files.cat_file(path))
        except FileNotFoundError:
            return None
        return data

    def write(self, name: str, data: bytes) -> None:
        """See Destination."""
        self._try("write", name, lambda files, path: files.pipe_file(path, data))

    @contextmanager
    def scratch(self, name: str) -> Iterator[Path]:
        """See Destination; the system's temporary folder has to have room for one shard a worker."""
        with tempfile.TemporaryDirectory(prefix="maskshards-") as folder:
            yield Path(folder) / Path(name).name

    def publish(self, path: Path, name: str, sha256: str) -> None:
        """See Destination. TransferError where the object that arrived is not the file that was sent."""

        def put(files: Any, target: str) -> None:
            files.put_file(str(path), target)
            found = sha256_of(files, target)
            if found != sha256:
                raise Transient(f"sha256 {found} arrived, {sha256} was sent")

        self._try("write", name, put)

    def sha256(self, name: str) -> str | None:
        """See Destination; reads the whole object."""
        try:
            found: str = self._try("read", name, sha256_of)
        except FileNotFoundError:
            return None
        return found

    def names(self) -> tuple[str, ...]:
        """See Destination."""
        found: list[str] = self._try("list", "", lambda files, path: files.find(path))
        base = self._driver()._strip_protocol(self.url).rstrip("/") + "/"
        return tuple(sorted(path.partition(base)[2] for path in found))

    def remove(self, name: str) -> None:
        """See Destination."""
        self._try("delete", name, _remove)

    def write_split(self, manifest: Manifest, entries: Iterable[Sequence[SampleEntry]]) -> Manifest:
        """See Destination."""
        with self.scratch(INDEX_NAME) as path:
            shards = write_index(path, manifest.shards, entries)
            with open(path, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            finished = finish_manifest(manifest, shards, digest)
            self.publish(path, INDEX_NAME, digest)
        self.write(MANIFEST_NAME, finished.to_bytes())
        return finished

    def finish(self) -> None:
        """See Destination. On the hub all at once: each change is a commit there, and commits are limited."""
        if not self.url.startswith("hf://"):
            for name in build_files(self):
                self.remove(name)
        elif build_files(self):
            self._try("delete", BUILD_FOLDER, lambda files, path: files.rm(path, recursive=True))

    def __str__(self) -> str:
        return self.url

    def _try(self, verb: str, name: str, do: Callable[[Any, str], Answer]) -> Answer:
        """Do it, again while its failure may pass.

        On reading, FileNotFoundError passes; all else ends as TransferError, or BuildError where there is no
        driver for the URL.
        """
        path = f"{self.url}/{name}" if name else self.url
        self._driver()

        def attempt(files: Any) -> Answer:
            files.invalidate_cache()  # workers write here as well, and hf:// keeps its listings
            return do(files, path)

        try:
            return tried(attempt, path, PATIENCE)
        except FileNotFoundError as error:
            if verb == "read":
                raise
            what = "that the bucket is there"
            if self.url.startswith("hf://"):
                what = "of hf://datasets/NAME/SET, and create it: hf repo create NAME/SET --repo-type dataset"
            raise TransferError(f"cannot {verb} {path}: {error}; make sure {what}") from error
        except StoreError as error:
            raise TransferError(
                f"cannot {verb} {error} Finished shards are kept: the same command goes on from there"
            ) from error

    def _driver(self) -> Any:
        scheme = self.url.partition("://")[0]
        if scheme not in PACKAGES:
            known = ", ".join(f"{name}://" for name in PACKAGES)
            raise BuildError(
                f"{self.url}: shards can be built to a local folder, {known}, not to {scheme}://"
            )
        try:
            if scheme == "hf":
                _without_bars()
            return file_system(self.url)
        except StoreError as error:
            raise BuildError(str(error)) from error


def _without_bars() -> None:
    """The hub's client shows a bar for each file, under a scratch name that says nothing."""
    with suppress(ImportError):  # told by whoever needs it
        from huggingface_hub.utils import disable_progress_bars

        disable_progress_bars()


def _remove(files: Any, path: str) -> None:
    if files.exists(path):
        files.rm_file(path)
