"""The files of a cache: reserved, named by digest, dropped in turn. How a store uses them: `test_cache`."""

import hashlib
import os
import threading

import pytest

from maskshards.shards.errors import StoreError
from maskshards.shards.format.index import ShardInfo
from maskshards.shards.loading.cache_folder import CacheFolder, file_name

DATA = [bytes([number]) * 1000 for number in range(4)]
SHARDS = [ShardInfo(f"{k}.tar", 1, 1000, hashlib.sha256(data).hexdigest()) for k, data in enumerate(DATA)]
NEVER = threading.Event()


@pytest.fixture
def folder(tmp_path):
    made = CacheFolder(tmp_path / "a" / "cache", 2500)
    made.make()
    return made


def writes(data):
    def copy(out):
        assert os.fstat(out.fileno()).st_size == 1000  # reserved before anything was written
        out.write(data)
        return hashlib.sha256(data).hexdigest()

    return copy


def names(folder):
    return sorted(path.name for path in folder.path.iterdir())


def test_a_copy_is_named_when_it_is_right_and_leaves_nothing_when_it_is_not(folder):
    with folder.lock(SHARDS[0], NEVER):
        assert folder.add(SHARDS[0], writes(DATA[1]), pytest.fail, NEVER) == SHARDS[1].sha256
        assert [name for name in names(folder) if not name.endswith(".lock")] == []
        assert folder.add(SHARDS[0], writes(DATA[0]), pytest.fail, NEVER) == SHARDS[0].sha256
    assert names(folder) == [file_name(SHARDS[0])]
    assert folder.file(SHARDS[0]).read_bytes() == DATA[0]


def test_the_limit_holds_and_the_oldest_go_first(folder):
    dropped = []
    for age, shard, data in zip((300, 500, 100, 0), SHARDS, DATA, strict=True):
        folder.add(shard, writes(data), dropped.append, NEVER)
        os.utime(folder.file(shard), (1e9 - age, 1e9 - age))
    assert dropped == [file_name(SHARDS[1]), file_name(SHARDS[0])]
    assert names(folder) == sorted(file_name(shard) for shard in SHARDS[2:])


def test_waiting_for_a_lock_ends_with_the_store(folder):
    stopped = threading.Event()
    stopped.set()
    with folder.lock(SHARDS[0], NEVER):
        with pytest.raises(StoreError, match="the store was closed while waiting"):
            folder.lock(SHARDS[0], stopped).__enter__()
