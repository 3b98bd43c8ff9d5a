"""A folder as a store: exact ranges or a named error, and descriptors that are given back."""

import copy
import errno
import os

import pytest

from maskshards.shards.errors import StoreError
from maskshards.shards.storage.local import LocalStore
from tests.shards.storage.descriptors import opened_below


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "a.tar").write_bytes(bytes(range(200)))
    return tmp_path


def test_a_range_beyond_the_end_names_file_and_bytes(folder):
    with pytest.raises(StoreError, match=r"a\.tar ends at byte 200, expected bytes up to 205"):
        LocalStore(folder).read("a.tar", 195, 10)


def test_missing_and_irregular_files_are_errors(folder):
    (folder / "sub").mkdir()
    with pytest.raises(StoreError, match=r"b\.tar cannot be opened: No such file"):
        LocalStore(folder).read("b.tar", 0, 1)
    with pytest.raises(StoreError, match="sub is a folder, expected a regular file"):
        LocalStore(folder).read("sub", 0, 1)


def test_a_file_deleted_while_open_is_still_read(folder):
    store = LocalStore(folder)
    store.read("a.tar", 0, 1)
    (folder / "a.tar").unlink()
    assert store.read("a.tar", 3, 2) == b"\x03\x04"
    store.close()
    with pytest.raises(StoreError, match="cannot be opened"):
        store.read("a.tar", 3, 2)


def test_a_pipe_in_a_shards_place_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.tar")
    with pytest.raises(StoreError, match=r"a\.tar is a pipe, expected a regular file"):
        LocalStore(tmp_path).size("a.tar")


def test_closing_gives_all_descriptors_back(folder):
    store = LocalStore(folder)
    store.read("a.tar", 0, 1)
    assert opened_below(folder) == [str(folder / "a.tar")]
    store.close()
    assert opened_below(folder) == []


def test_a_file_that_went_stale_is_a_named_error_and_opened_anew(folder, monkeypatch):
    store, honest, failures = LocalStore(folder), os.pread, [errno.ESTALE]

    def pread(fd, size, offset):
        if failures:
            raise OSError(failures.pop(), "Stale file handle")
        return honest(fd, size, offset)

    store.size("a.tar")
    (folder / "new").write_bytes(b"anew")
    (folder / "new").replace(folder / "a.tar")
    monkeypatch.setattr(os, "pread", pread)
    with pytest.raises(StoreError, match=r"a\.tar cannot be read at byte 0: Stale file handle"):
        store.read("a.tar", 0, 4)
    assert store.read("a.tar", 0, 4) == b"anew"
    store.close()


def test_a_copy_opens_its_own_files(folder):
    assert copy.copy(LocalStore(folder)).read("a.tar", 1, 1) == b"\x01"
