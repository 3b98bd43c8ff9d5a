"""A folder as a store: exact ranges or a named error, and descriptors that are given back."""

import copy
import gc
import os

import pytest

from maskshards.shards.errors import StoreError
from maskshards.shards.storage.local import OPEN_FILES, LocalStore


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
    with pytest.raises(StoreError, match="not a regular file"):
        LocalStore(folder).read("sub", 0, 1)


def test_a_file_deleted_while_open_is_still_read(folder):
    store = LocalStore(folder)
    store.read("a.tar", 0, 1)
    (folder / "a.tar").unlink()
    assert store.read("a.tar", 3, 2) == b"\x03\x04"
    store.close()
    with pytest.raises(StoreError, match="cannot be opened"):
        store.read("a.tar", 3, 2)


def test_descriptors_are_bounded_and_closed(tmp_path):
    for number in range(OPEN_FILES + 10):
        (tmp_path / f"{number}.tar").write_bytes(b"x")
    before = len(os.listdir("/proc/self/fd"))
    store = LocalStore(tmp_path)
    for number in range(OPEN_FILES + 10):
        store.read(f"{number}.tar", 0, 1)
    assert len(os.listdir("/proc/self/fd")) <= before + OPEN_FILES
    store.close()
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= before


def test_a_copy_opens_its_own_files(folder):
    assert copy.copy(LocalStore(folder)).read("a.tar", 1, 1) == b"\x01"
