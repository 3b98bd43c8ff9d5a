"""Exact ranges or a named error, from a folder."""

import copy
import gc
import io
import os

import pytest

from maskshards.shards.errors import StoreError
from maskshards.shards.storage.base import StoreFile
from maskshards.shards.storage.local import OPEN_FILES, LocalStore
from maskshards.shards.storage.open_store import open_store


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "a.tar").write_bytes(bytes(range(200)))
    return tmp_path


def test_ranges_are_exact(folder):
    store = open_store(folder)
    assert store.read("a.tar", 10, 5) == bytes(range(10, 15))
    assert store.read("a.tar", 0, 0) == b""
    assert store.size("a.tar") == 200
    assert open_store(f"file://{folder}").read("a.tar", 199, 1) == b"\xc7"


def test_a_range_beyond_the_end_names_file_and_bytes(folder):
    with pytest.raises(StoreError, match=r"a\.tar ends at byte 200, expected bytes up to 205"):
        open_store(folder).read("a.tar", 195, 10)


def test_missing_and_irregular_files_are_errors(folder):
    (folder / "sub").mkdir()
    with pytest.raises(StoreError, match=r"b\.tar cannot be opened: No such file"):
        open_store(folder).read("b.tar", 0, 1)
    with pytest.raises(StoreError, match="not a regular file"):
        open_store(folder).read("sub", 0, 1)


@pytest.mark.parametrize(
    "name", ["../a.tar", "/etc/passwd", "", "..", ".", "a/b", "a\\b", "a\n", "pipe:ls", "a b"]
)
def test_names_cannot_lead_elsewhere(folder, name):
    with pytest.raises(StoreError, match="not a plain file name"):
        open_store(folder / "sub").read(name, 0, 1)


def test_a_file_deleted_while_open_is_still_read(folder):
    store = open_store(folder)
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
    assert copy.copy(open_store(folder)).read("a.tar", 1, 1) == b"\x01"


def test_unknown_schemes_are_refused():
    with pytest.raises(StoreError, match="pipe://"):
        open_store("pipe://ls")


def test_a_store_file_behaves_like_a_file(folder):
    file = io.BufferedReader(StoreFile(open_store(folder), "a.tar"))
    assert file.seek(-4, io.SEEK_END) == 196
    assert file.read() == bytes(range(196, 200))
    assert file.read() == b""
    file.seek(50)
    assert (file.read(2), file.tell()) == (b"\x32\x33", 52)
