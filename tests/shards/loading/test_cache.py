"""Copies of remote shards: verified before they have a name, fetched once a node, bounded, crash-safe."""

import dataclasses
import errno
import hashlib
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest

from maskshards.shards.errors import SampleError, StoreError
from maskshards.shards.format.manifest import Split, open_split
from maskshards.shards.loading import cache
from maskshards.shards.loading.cache import CachedStore, CacheSettings, cached
from maskshards.shards.loading.cache_folder import CacheFolder
from maskshards.shards.loading.loader import Loader
from maskshards.shards.loading.place import Share
from maskshards.shards.storage.http import HttpStore
from maskshards.shards.storage.retry import RetrySettings

QUICK = RetrySettings(attempts=3, first_delay_s=0.001, stall_s=0.5, total_s=2.0)


@pytest.fixture(scope="module")
def made(make_split):
    return make_split("cached", [4, 3, 5])


@pytest.fixture
def server(serve, made):
    return serve(made.folder)


@pytest.fixture
def store(server, made, tmp_path):
    store = CachedStore(
        HttpStore(server.url, QUICK), made.manifest.shards, CacheSettings(tmp_path / "cache", 1 << 20)
    )
    yield store
    store.close()


def tar_bytes(made, number):
    return (made.folder / made.manifest.shards[number].name).read_bytes()


def names_in(folder):
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


def test_a_shard_is_fetched_once_and_named_by_its_digest(store, server, made):
    shard = made.manifest.shards[0]
    for offset in (0, 700, 100):
        assert store.read(shard.name, offset, 300) == tar_bytes(made, 0)[offset : offset + 300]
    assert server.bytes_sent[shard.name] == shard.bytes
    assert names_in(store.folder) == [f"{hashlib.sha256(tar_bytes(made, 0)).hexdigest()}.tar"]
    assert store.size(shard.name) == shard.bytes
    assert store.folder.stat().st_mode & 0o777 == 0o700


def test_other_files_pass_through(store, made):
    manifest = (made.folder / "manifest.json").read_bytes()
    assert store.read("manifest.json", 0, len(manifest)) == manifest
    assert store.size("manifest.json") == len(manifest)
    assert names_in(store.folder) == []


def test_the_index_comes_by_one_question_through_a_cache_too(store, server, made):
    split = Split(made.manifest, store)
    assert [len(split.index(number)) for number in range(3)] == [4, 3, 5]
    assert len(server.headers) == 2  # its size, and all of it


def test_a_second_job_fetches_nothing(store, server, made, tmp_path):
    store.read(made.manifest.shards[1].name, 0, 10)
    sent = dict(server.bytes_sent)
    other = CachedStore(HttpStore(server.url, QUICK), made.manifest.shards, CacheSettings(tmp_path / "cache"))
    assert other.read(made.manifest.shards[1].name, 0, 10) == tar_bytes(made, 1)[:10]
    other.close()
    assert server.bytes_sent == sent


def test_many_readers_at_once_fetch_once(server, made, tmp_path):
    """Threads over separate stores lock as separate jobs do: each has its own file handle on the lock."""
    settings = CacheSettings(tmp_path / "cache")
    stores = [CachedStore(HttpStore(server.url, QUICK), made.manifest.shards, settings) for _ in range(6)]
    shard, got = made.manifest.shards[2], []
    threads = [
        threading.Thread(target=lambda store=store: got.append(store.read(shard.name, 5, 50)))
        for store in stores
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for store in stores:
        store.close()
    assert got == [tar_bytes(made, 2)[5:55]] * 6
    assert server.bytes_sent[shard.name] == shard.bytes


@pytest.mark.parametrize("fault", ["cut", "500", "stall", "flip"])
def test_a_download_survives_what_passes(store, server, made, fault):
    shard = made.manifest.shards[0]
    server.faults[shard.name] = [fault]
    assert store.read(shard.name, 0, shard.bytes) == tar_bytes(made, 0)


@pytest.mark.parametrize(
    ("fault", "message"), [("flip", "has sha256"), ("html", "expected 206"), ("404", "answered 404")]
)
def test_a_bad_download_leaves_nothing(store, server, made, fault, message):
    shard = made.manifest.shards[0]
    server.faults[shard.name] = [fault] * (2 if fault == "flip" else 1)  # the same bit: it is wrong there
    with pytest.raises(StoreError, match=message):
        store.read(shard.name, 0, 10)
    assert not server.faults[shard.name]
    assert names_in(store.folder) == []
    assert store.read(shard.name, 0, 10) == tar_bytes(made, 0)[:10]


def test_a_download_that_is_wrong_in_another_way_each_time_is_given_up_too(store, server, made, monkeypatch):
    shard, sums = made.manifest.shards[0], iter("abcdefgh")
    add = store._files.add
    monkeypatch.setattr(store._files, "add", lambda *words: add(*words) and next(sums) * 64)
    with pytest.raises(StoreError, match=f"has sha256 {'d' * 64}"):  # MOST_READS of them
        store.read(shard.name, 0, 10)
    assert next(sums) == "e"


def test_another_data_set_under_the_same_names_has_its_own_copies(store, serve, make_split, made, tmp_path):
    other = make_split("namesake", [4, 3, 5], seed=9)
    url = serve(other.folder).url
    second = CachedStore(HttpStore(url, QUICK), other.manifest.shards, CacheSettings(tmp_path / "cache"))
    name = made.manifest.shards[0].name
    assert other.manifest.shards[0].name == name
    assert store.read(name, 0, 2000) == tar_bytes(made, 0)[:2000]
    assert second.read(name, 0, 2000) == tar_bytes(other, 0)[:2000]
    wrong = CachedStore(HttpStore(url, QUICK), made.manifest.shards, CacheSettings(tmp_path / "empty"))
    with pytest.raises(StoreError, match=r"of another data set there|ends before|the file has"):
        wrong.read(name, 0, 10)
    second.close()
    wrong.close()


def test_the_size_limit_drops_what_was_not_used_for_longest(server, made, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "FRESH_S", 0.0)
    shards = made.manifest.shards
    limit = max(shards[0].bytes + shards[1].bytes, shards[0].bytes + shards[2].bytes)
    store = CachedStore(HttpStore(server.url, QUICK), shards, CacheSettings(tmp_path / "cache", limit))
    for number, age in ((0, 300), (1, 200), (0, 100)):
        store.read(shards[number].name, 0, 10)
        path = store.folder / f"{shards[number].sha256}.tar"
        os.utime(path, (path.stat().st_atime, path.stat().st_mtime - age))
    store.read(shards[2].name, 0, 10)  # shard 0 was used after shard 1
    assert names_in(store.folder) == sorted(f"{shards[number].sha256}.tar" for number in (0, 2))
    assert store.read(shards[1].name, 3, 10) == tar_bytes(made, 1)[3:13]
    store.close()


def test_what_another_job_renames_or_drops_meanwhile_is_no_error(store, made):
    """Between listing the folder and looking at a file, the file may go; a dangling link is such a name."""
    for name in (".other.host.1.part", "0" * 64 + ".tar"):
        (store.folder / name).symlink_to("gone")
    assert store.read(made.manifest.shards[0].name, 10, 10) == tar_bytes(made, 0)[10:20]


def test_a_copy_that_others_drop_before_it_is_open_is_read_by_ranges(store, made, monkeypatch, caplog):
    """Where a limit is too small for those who read at once."""
    honest = CacheFolder.add

    def add(folder, shard, *words):
        digest = honest(folder, shard, *words)
        folder.file(shard).unlink()
        return digest

    monkeypatch.setattr(CacheFolder, "add", add)
    shard = made.manifest.shards[0]
    for offset in (7, 20):
        assert store.read(shard.name, offset, 10) == tar_bytes(made, 0)[offset : offset + 10]
    assert ["raise max_bytes" in line for line in caplog.messages] == [True]
    monkeypatch.undo()
    monkeypatch.setattr(cache, "WITHOUT_S", 0.0)
    store.read(shard.name, 7, 10)
    assert names_in(store.folder) == [f"{shard.sha256}.tar"]


def test_a_dropped_copy_stays_readable_for_who_has_it_open(store, made):
    name = made.manifest.shards[0].name
    store.read(name, 0, 10)
    (store.folder / f"{made.manifest.shards[0].sha256}.tar").unlink()
    assert store.read(name, 10, 10) == tar_bytes(made, 0)[10:20]


def test_a_limit_below_one_shard_is_refused(server, made, tmp_path):
    with pytest.raises(StoreError, match="the cache may hold 100; raise the limit"):
        CachedStore(HttpStore(server.url), made.manifest.shards, CacheSettings(tmp_path / "cache", 100))


def refuse(number):
    def refused(*words, **settings):
        raise OSError(number, os.strerror(number))

    return refused


@pytest.mark.parametrize(
    ("call", "number", "says"),
    [
        ("posix_fallocate", errno.ENOSPC, "No space left on device; free some space"),
        ("fsync", errno.EIO, "Input/output error; is it writable"),
        ("rename", errno.EDQUOT, "Disk quota exceeded; free some space"),
    ],
)
def test_a_disk_that_keeps_nothing_costs_speed_and_not_the_run(
    store, server, made, monkeypatch, caplog, call, number, says
):
    shard, other = made.manifest.shards[:2]
    monkeypatch.setattr(os, call, refuse(number))
    assert store.read(shard.name, 7, 10) == tar_bytes(made, 0)[7:17]
    sent = server.bytes_sent[shard.name]
    assert store.read(shard.name, 7, 10) + store.read(other.name, 0, 5) == (
        tar_bytes(made, 0)[7:17] + tar_bytes(made, 1)[:5]
    )
    assert server.bytes_sent[shard.name] == sent + 10  # by ranges, not as a whole each time
    assert (sent < shard.bytes) == (call == "posix_fallocate")  # where it shows at once, nothing was fetched
    assert store.num_connections == store.remote.num_connections > 1  # several samples at once from now on
    assert names_in(store.folder) == []
    assert [says in line for line in caplog.messages if "cannot be kept" in line] == [True]
    monkeypatch.undo()
    monkeypatch.setattr(cache, "WITHOUT_S", 0.0)
    store.read(shard.name, 7, 10)
    assert names_in(store.folder) == [f"{shard.sha256}.tar"]


def test_a_full_disk_gives_up_the_oldest_copies_first(store, server, made, monkeypatch):
    first, second, third = made.manifest.shards
    store.read(first.name, 0, 10)
    store.read(second.name, 0, 10)
    os.utime(store.folder / f"{second.sha256}.tar", (1, 1))
    honest, full = os.posix_fallocate, [True]

    def fallocate(handle, offset, size):
        if full and full.pop():
            raise OSError(errno.ENOSPC, "No space left on device")
        honest(handle, offset, size)

    monkeypatch.setattr(os, "posix_fallocate", fallocate)
    assert store.read(third.name, 3, 9) == tar_bytes(made, 2)[3:12]
    assert f"{third.sha256}.tar" in names_in(store.folder)
    assert f"{second.sha256}.tar" not in names_in(store.folder)
    assert store.read(second.name, 3, 9) == tar_bytes(made, 1)[3:12]


def test_a_folder_that_is_deleted_is_made_again(store, made, monkeypatch):
    shard = made.manifest.shards[0]
    store.read(shard.name, 0, 10)
    shutil.rmtree(store.folder)
    assert store.read(shard.name, 5, 10) == tar_bytes(made, 0)[5:15]  # it is open here
    store.close()
    assert store.read(shard.name, 5, 10) == tar_bytes(made, 0)[5:15]
    assert names_in(store.folder) == [f"{shard.sha256}.tar"]
    shutil.rmtree(store.folder)
    store.folder.write_text("a file in its place")
    store.close()
    assert store.read(shard.name, 5, 10) == tar_bytes(made, 0)[5:15]


def test_a_folder_that_becomes_read_only_is_read_and_not_written(store, made, monkeypatch):
    first, second = made.manifest.shards[:2]
    store.read(first.name, 0, 10)
    store.close()
    honest = os.open

    def read_only(path, flags, *mode, **words):
        if str(path).startswith(str(store.folder)) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise OSError(errno.EROFS, "Read-only file system", str(path))
        return honest(path, flags, *mode, **words)

    monkeypatch.setattr(os, "open", read_only)
    assert store.read(first.name, 5, 10) == tar_bytes(made, 0)[5:15]
    assert store.read(second.name, 5, 10) == tar_bytes(made, 1)[5:15]


def test_what_hosts_left_that_are_gone_is_swept(store, made):
    old, new = store.folder / ".aa.gone-host.1.00.part", store.folder / ".aa.busy-host.1.00.part"
    for path in (old, new):
        path.write_bytes(b"x" * 100)
    os.utime(old, (1, 1))
    store.read(made.manifest.shards[0].name, 0, 10)
    assert not old.exists()
    assert new.exists()


FORKED = """
import os, sys
from maskshards.shards.format.manifest import open_split
from maskshards.shards.loading.cache import CacheSettings, cached
split = cached(open_split(sys.argv[1]), CacheSettings(sys.argv[2]))
shards = split.manifest.shards
want = {shard.name: split.store.read(shard.name, 7, 50) for shard in shards[:1]}
split.store.prefetch([shard.name for shard in shards])
with split.store._running.get().lock:  # a thread that does not exist in the child
    child = os.fork()
    if not child:
        same = all(split.store.read(name, 7, 50) == data for name, data in want.items())
        split.store.prefetch([shard.name for shard in shards])
        sizes = [len(split.store.read(shard.name, 0, 20)) for shard in shards]
        split.store.close()
        os._exit(0 if same and sizes == [20, 20, 20] else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert [len(split.store.read(shard.name, 0, 20)) for shard in shards] == [20, 20, 20]
split.store.close()
"""


def test_a_forked_child_fetches_by_itself(server, tmp_path):
    command = [sys.executable, "-c", FORKED, server.url, str(tmp_path / "cache")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_closing_ends_a_download_and_a_wait_for_another_reader(server, made, tmp_path):
    """One store waits for a server that is silent, another for the first one's lock."""
    shard = made.manifest.shards[0]
    settings, patient = CacheSettings(tmp_path / "cache"), RetrySettings(stall_s=600.0, total_s=600.0)
    server.faults[shard.name] = ["silent"]
    stores = [CachedStore(HttpStore(server.url, patient), made.manifest.shards, settings) for _ in range(2)]
    errors, threads = [], []

    def read(store):
        try:
            store.read(shard.name, 0, 10)
        except StoreError as error:
            errors.append(str(error))

    for store in stores:
        threads.append(threading.Thread(target=read, args=(store,), daemon=True))
        threads[-1].start()
        assert server.waiting.wait(600)
    for store in reversed(stores):
        store.close()
    for thread in threads:
        thread.join(600)
    assert ["closed" in error for error in errors] == [True, True]


def test_a_spoiled_copy_is_fetched_again_once(server, made, tmp_path):
    split = open_split(server.url)
    settings = CacheSettings(tmp_path / "cache")
    first = Loader(split, batch_per_rank=12, cache=settings)
    with first:
        want = next(iter(first))
    for path in (tmp_path / "cache").glob("*.tar"):
        spoiled = bytearray(path.read_bytes())
        offset = split.index([s.sha256 for s in made.manifest.shards].index(path.stem)).entry(0).runs_offset
        spoiled[offset] ^= 1
        path.write_bytes(spoiled)
    with Loader(split, batch_per_rank=12, cache=settings) as loader:
        assert next(iter(loader)).pixels.equal(want.pixels)
    assert all(
        hashlib.sha256(path.read_bytes()).hexdigest() == path.stem
        for path in (tmp_path / "cache").glob("*.tar")
    )
    split.store.close()


def test_a_fault_at_the_source_is_not_hidden_by_fetching_again(serve, made, tmp_path, monkeypatch):
    """The manifest vouches for a tar whose bytes its own index contradicts: no copy can help."""
    split = open_split(serve(made.folder).url)
    honest = Split.index

    def spoiled(split, number):
        rows = honest(split, number)
        return dataclasses.replace(rows, runs_crc32c=rows.runs_crc32c ^ np.uint32(1))

    monkeypatch.setattr(Split, "index", spoiled)
    with Loader(split, batch_per_rank=12) as loader, pytest.raises(SampleError, match="crc32c"):
        next(iter(loader))
    split.store.close()


def _fetch_and_hang(url, folder, shards, ready):
    """In another process: fetch a shard, and stop for good in the middle of it, holding the lock."""
    remote = HttpStore(url, QUICK)
    store = CachedStore(remote, shards, CacheSettings(folder))

    def hang(name, offset, size):
        ready.set()
        signal.pause()

    remote.read = hang
    store.read(shards[0].name, 0, 10)


def test_a_killed_download_is_swept_up_by_the_next(server, made, store):
    context = multiprocessing.get_context("forkserver")
    ready = context.Event()
    shards = made.manifest.shards
    child = context.Process(target=_fetch_and_hang, args=(server.url, store.folder, shards, ready))
    child.start()
    assert ready.wait(900)
    assert [name.startswith(f".{shards[0].sha256}") for name in names_in(store.folder)] == [True]
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    assert store.read(shards[0].name, 0, 10) == tar_bytes(made, 0)[:10]
    assert names_in(store.folder) == [f"{shards[0].sha256}.tar"]


def test_fetching_ahead_ends_with_the_store(store, server, made):
    store.prefetch([shard.name for shard in made.manifest.shards])
    store.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("maskshards-cache")]
    sent = sum(server.bytes_sent.values())
    assert sent <= sum(shard.bytes for shard in made.manifest.shards)
    assert store.read(made.manifest.shards[1].name, 0, 10) == tar_bytes(made, 1)[:10]


def test_fetching_ahead_gets_whole_shards(store, server, made):
    shard = made.manifest.shards[0]
    store.prefetch([shard.name])
    for coming in list(store._running.get().coming.values()):
        coming.result(10)
    sent = server.bytes_sent[shard.name]
    assert sent == shard.bytes
    store.read(shard.name, 0, 10)
    assert server.bytes_sent[shard.name] == sent


def test_a_loader_fetches_its_shards_and_the_next_of_each_lane_ahead(server, made, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(CachedStore, "prefetch", lambda store, names: asked.extend(names))
    with Loader(server.url, batch_per_rank=1, threads=1, cache=CacheSettings(tmp_path), end=12) as loader:
        batches = loader.plans(Share(0, 1, 12))
        next(batches)
        assert len(asked) == 2  # one lane: the shard that it is in, and the one after it
        list(batches)
    assert sorted(asked) == [shard.name for shard in made.manifest.shards]  # each announced once an epoch


def test_local_splits_need_no_cache(made, tmp_path):
    split = open_split(str(made.folder))
    assert cached(split, CacheSettings(tmp_path)) is split
    remote = Split(made.manifest, HttpStore("http://127.0.0.1:9"))
    once = cached(remote, CacheSettings(tmp_path))
    assert isinstance(once.store, CachedStore)
    assert cached(once, CacheSettings(tmp_path)) is once


def test_a_copy_that_was_cut_short_is_fetched_again(server, made, tmp_path):
    shard, settings = made.manifest.shards[0], CacheSettings(tmp_path / "cache")
    for _ in range(2):
        store = CachedStore(HttpStore(server.url, QUICK), made.manifest.shards, settings)
        assert store.read(shard.name, shard.bytes - 20, 20) == tar_bytes(made, 0)[-20:]
        os.truncate(store.folder / f"{shard.sha256}.tar", 700)
        assert store.read(shard.name, shard.bytes - 20, 20) == tar_bytes(made, 0)[-20:]
        store.close()
        os.truncate(store.folder / f"{shard.sha256}.tar", 900)
    assert server.bytes_sent[shard.name] == 4 * shard.bytes


@pytest.mark.parametrize("folder", ["", "  "])
def test_a_folder_without_a_name_is_not_the_working_directory(folder):
    with pytest.raises(ValueError, match="folder has no name"):
        CacheSettings(folder)


@pytest.mark.parametrize("limit", [0, -1, 0.5, 1e30, float("inf"), float("nan"), True, "1"])
def test_a_limit_that_is_no_number_of_bytes_is_named(tmp_path, limit):
    with pytest.raises(ValueError, match=r"^the cache's max_bytes is "):
        CacheSettings(tmp_path, limit)


def test_bytes_are_often_written_as_a_power_of_ten(tmp_path):
    limit = CacheSettings(tmp_path, 100e9).max_bytes
    assert isinstance(limit, int)
    assert limit == 10**11
