"""Object stores through fsspec, with its file system in memory; and what happens when one misbehaves."""

import copy

import fsspec
import pytest

from maskshards.shards.errors import StoreError
from maskshards.shards.format.manifest import open_split
from maskshards.shards.storage.object_store import CloudStore
from maskshards.shards.storage.open_store import open_store
from maskshards.shards.storage.retry import RetrySettings

QUICK = RetrySettings(attempts=3, first_delay_s=0.001)


@pytest.fixture
def store():
    system = fsspec.filesystem("memory")
    system.pipe("/split/a.tar", bytes(range(100)))
    yield CloudStore("memory://split", QUICK)
    system.rm("/split", recursive=True)


def test_ranges_and_sizes_are_exact(store):
    assert store.read("a.tar", 10, 5) == bytes(range(10, 15))
    assert store.read("a.tar", 10, 0) == b""
    assert store.size("a.tar") == 100
    assert copy.copy(store).read("a.tar", 0, 2) == b"\0\1"


def test_missing_files_and_short_answers_are_errors(store):
    with pytest.raises(StoreError, match=r"memory://split/b\.tar cannot be read \(FileNotFoundError"):
        store.read("b.tar", 0, 1)
    with pytest.raises(StoreError, match="5 bytes came for a range of 10, 3 attempts"):
        store.read("a.tar", 95, 10)


def test_what_may_pass_is_tried_again(store, monkeypatch):
    system = store._open()
    honest, failures = system.cat_file, [TimeoutError("slow"), ConnectionResetError("cut")]

    def cat_file(path, start, end):
        if failures:
            raise failures.pop()
        return honest(path, start=start, end=end)

    monkeypatch.setattr(system, "cat_file", cat_file)
    assert store.read("a.tar", 1, 2) == b"\1\2"
    assert not failures


@pytest.mark.parametrize("base", ["ftp://x/y", "simplecache::s3://x", "github://x/y", "s3://b::file://x"])
def test_the_list_of_schemes_is_closed(base):
    with pytest.raises(StoreError, match=r"not a place|cannot be opened"):
        open_store(base).read("a.tar", 0, 1)


def test_errors_of_client_libraries_become_ours(store, monkeypatch):
    class NoCredentialsError(Exception):
        pass

    def info(path):
        raise NoCredentialsError("unable to locate credentials")

    monkeypatch.setattr(store._open(), "info", info)
    with pytest.raises(StoreError, match=r"a\.tar cannot be read \(NoCredentialsError: unable to locate"):
        store.size("a.tar")
    with pytest.raises(StoreError, match="name a bucket"):
        open_store("s3://")


def test_a_missing_package_is_named(monkeypatch):
    def unknown(scheme):
        raise ImportError(scheme)

    monkeypatch.setattr(fsspec, "filesystem", unknown)
    with pytest.raises(StoreError, match="pip install s3fs"):
        CloudStore("s3://bucket/split").read("a.tar", 0, 1)


def test_a_whole_split_streams_from_there(make_split, take_keys):
    made = make_split("cloud", [3, 4])
    system = fsspec.filesystem("memory")
    for path in made.folder.iterdir():
        system.pipe(f"/bucket/{path.name}", path.read_bytes())
    assert take_keys("memory://bucket", 2, batch_per_rank=7) == take_keys(made.folder, 2, batch_per_rank=7)
    assert open_split("memory://bucket").manifest == made.manifest
    system.rm("/bucket", recursive=True)
