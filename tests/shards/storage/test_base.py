"""Names that stay inside a split, and a store's file as Python's."""

import io

import pytest

from maskshards.shards.errors import SampleError, StoreError
from maskshards.shards.storage.base import MOST_READS, StoreFile, believed
from maskshards.shards.storage.http import HttpStore
from maskshards.shards.storage.open_store import open_store


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "a.tar").write_bytes(bytes(range(200)))
    return tmp_path


@pytest.mark.parametrize(
    "name", ["../a.tar", "/etc/passwd", "", "..", ".", "a/b", "a\\b", "a\n", "pipe:ls", "a b"]
)
def test_names_cannot_lead_elsewhere(folder, name):
    with pytest.raises(StoreError, match="not a plain file name"):
        open_store(folder / "sub").read(name, 0, 1)


def test_a_store_file_behaves_like_a_file(folder):
    file = io.BufferedReader(StoreFile(open_store(folder), "a.tar"))
    assert file.seek(-4, io.SEEK_END) == 196
    assert file.read() == bytes(range(196, 200))
    assert file.read() == b""
    file.seek(50)
    assert (file.read(2), file.tell()) == (b"\x32\x33", 52)


def wrong(times):
    """A read that is refused so many times, and then is not."""
    reads = []

    def read():
        reads.append(1)
        if len(reads) <= times:
            raise SampleError("its crc32c is another")
        return len(reads)

    return read


def test_what_comes_damaged_over_a_network_is_asked_for_again_a_few_times(folder):
    remote, local = HttpStore("http://127.0.0.1:9"), open_store(folder)
    for times in range(MOST_READS):
        assert believed(wrong(times), SampleError, remote, "a.tar") == times + 1
    for store, times in ((remote, MOST_READS), (local, 1)):
        with pytest.raises(SampleError):
            believed(wrong(times), SampleError, store, "a.tar")
    with pytest.raises(SampleError):
        believed(wrong(1), StoreError, remote, "a.tar")
