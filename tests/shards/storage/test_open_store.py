"""The store that a place's name stands for."""

import pytest

from maskshards.shards.errors import StoreError
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


def test_unknown_schemes_are_refused():
    with pytest.raises(StoreError, match="pipe://"):
        open_store("pipe://ls")
