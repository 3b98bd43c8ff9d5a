"""The store that a place's name stands for."""

import pickle

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


def test_a_folder_stays_the_same_one_wherever_the_process_goes(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    store = open_store(folder.name)
    copied = pickle.dumps(store)
    monkeypatch.chdir("/")
    assert store.read("a.tar", 1, 2) == pickle.loads(copied).read("a.tar", 1, 2) == b"\1\2"
    assert store.base == str(folder)


@pytest.mark.parametrize("name", ["Größe ä", "50%20off", "a b%", "[x]"])
def test_a_file_url_may_be_escaped_or_not(folder, name):
    (folder / name).mkdir()
    (folder / name / "b.tar").write_bytes(b"b")
    for url in (f"file://{folder / name}", (folder / name).as_uri()):
        assert open_store(url).read("b.tar", 0, 1) == b"b"
