"""Object stores through fsspec, with its file system in memory; and what happens when one misbehaves."""

import asyncio
import copy
import hashlib
import threading

import fsspec
import pytest
from fsspec.asyn import AsyncFileSystem

from maskshards.shards.errors import StoreError, UnreachableError
from maskshards.shards.format.manifest import open_split
from maskshards.shards.storage import object_store
from maskshards.shards.storage.object_store import CloudStore, file_system, sha256_of, tried
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
    system = file_system(store.base)
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

    monkeypatch.setattr(file_system(store.base), "info", info)
    with pytest.raises(StoreError, match=r"a\.tar refuses \(NoCredentialsError: unable to locate"):
        store.size("a.tar")
    with pytest.raises(StoreError, match="name a bucket"):
        open_store("s3://")


def test_a_missing_package_is_named(monkeypatch):
    def unknown(scheme, **words):
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


class Hanging(AsyncFileSystem):
    """A driver of a store that does not answer; `asked` is set once it waits."""

    cachable = False

    def __init__(self, asked):
        super().__init__()
        self.asked, self.cancelled = asked, threading.Event()

    async def _cat_file(self, path, start, end):
        self.asked.set()
        try:
            await asyncio.sleep(600)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise

    async def _info(self, path):
        raise TimeoutError("its own")


def test_closing_ends_a_wait_and_the_request_behind_it(monkeypatch):
    system = Hanging(threading.Event())
    monkeypatch.setattr(object_store, "file_system", lambda url: system)
    store, errors = CloudStore("memory://split", RetrySettings(first_delay_s=1e6, longest_delay_s=1e6)), []

    def read():
        try:
            store.read("a.tar", 0, 5)
        except StoreError as error:
            errors.append(str(error))

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    assert system.asked.wait(600)
    store.close()
    thread.join(600)
    assert [("the store was closed meanwhile" in error) for error in errors] == [True]
    assert system.cancelled.wait(600)


def test_closing_leaves_a_driver_that_cannot_be_interrupted_to_itself(monkeypatch):
    """As that of hf:// is."""
    asked, answers, errors = threading.Event(), threading.Event(), []

    class Blocking:
        def cat_file(self, path, start, end):
            asked.set()
            answers.wait(600)
            return bytes(end - start)

    monkeypatch.setattr(object_store, "file_system", lambda url: Blocking())
    store = CloudStore("memory://split", RetrySettings(first_delay_s=1e6, longest_delay_s=1e6))

    def read():
        try:
            store.read("a.tar", 0, 5)
        except StoreError as error:
            errors.append(str(error))

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    assert asked.wait(600)
    store.close()
    reader.join(600)
    assert [("the store was closed meanwhile" in error) for error in errors] == [True]
    answers.set()
    assert store.read("a.tar", 0, 5) == bytes(5)


def test_an_answer_that_never_comes_is_given_up_and_asked_for_again(monkeypatch):
    system = Hanging(threading.Event())
    monkeypatch.setattr(object_store, "file_system", lambda url: system)
    store = CloudStore("memory://split", RetrySettings(attempts=2, first_delay_s=0.001, total_s=0.0))
    with pytest.raises(UnreachableError, match="did not come in time, 2 attempts in all"):
        store.read("a.tar", 0, 5)
    patient = CloudStore("memory://split", RetrySettings(attempts=2, first_delay_s=0.001, total_s=600.0))
    with pytest.raises(UnreachableError, match="TimeoutError: its own, 2 attempts in all"):
        patient.size("a.tar")


def test_a_digest_is_that_of_the_whole_object_and_a_missing_one_is_an_answer(store):
    found = tried(lambda files: sha256_of(files, "memory://split/a.tar"), "memory://split/a.tar", QUICK)
    assert found == hashlib.sha256(bytes(range(100))).hexdigest()
    with pytest.raises(FileNotFoundError):
        tried(lambda files: sha256_of(files, "memory://split/b.tar"), "memory://split/b.tar", QUICK)


@pytest.mark.parametrize(("status", "tries"), [(401, 1), (404, 1), (429, 3), (503, 3)])
def test_a_server_that_refuses_is_not_asked_again(store, monkeypatch, status, tries):
    class HttpError(Exception):
        def __init__(self):
            self.response = type("Response", (), {"status_code": status})
            super().__init__(f"status {status}")

    calls = []

    def info(path):
        calls.append(path)
        raise HttpError

    monkeypatch.setattr(file_system(store.base), "info", info)
    with pytest.raises(StoreError, match=f"HttpError: status {status}"):
        store.size("a.tar")
    assert len(calls) == tries
