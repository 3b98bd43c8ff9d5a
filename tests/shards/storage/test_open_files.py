"""Descriptors of all stores together: real limits, real forks and stores that nobody closed."""

import contextlib
import gc
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from maskshards.shards.errors import StoreError
from maskshards.shards.storage.open_files import OpenFiles


class Store:
    """Whatever opens files."""


def descriptors(paths):
    """How many descriptors of this process lead to the files of this test; others come and go."""
    found = 0
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # that of the listing itself
            found += Path(os.readlink(f"/proc/self/fd/{name}")).parent == paths[0].parent
    return found


@pytest.fixture
def paths(tmp_path):
    made = [tmp_path / f"{number:03d}.tar" for number in range(40)]
    for number, path in enumerate(made):
        path.write_bytes(bytes([number]))
    return made


@pytest.fixture
def files():
    return OpenFiles()


def read(files, number, path):
    file = files.take(number, path)
    try:
        return os.pread(file.fd, 1, 0)
    finally:
        files.give_back(file)


def test_those_used_longest_ago_are_closed_first_over_all_stores(files, paths, monkeypatch):
    monkeypatch.setattr(files, "_room", 5)
    one, two = Store(), Store()
    numbers, before = (files.enrol(one), files.enrol(two)), descriptors(paths)
    for path in paths[:4]:
        for number in numbers:
            read(files, number, path)
    read(files, numbers[0], paths[2])
    read(files, numbers[1], paths[9])
    assert descriptors(paths) == before + 5
    assert [(number, path) for number, path in files._files] == [
        (numbers[1], "002.tar"),
        (numbers[0], "003.tar"),
        (numbers[1], "003.tar"),
        (numbers[0], "002.tar"),
        (numbers[1], "009.tar"),
    ]
    for number in numbers:
        files.forget(number)
    assert descriptors(paths) == before


def test_a_file_in_use_is_closed_by_its_last_reader(files, paths):
    store, before = Store(), descriptors(paths)
    number = files.enrol(store)
    first, second = files.take(number, paths[3]), files.take(number, paths[3])
    assert first is second
    files.forget(number)
    files.give_back(first)
    assert os.pread(second.fd, 1, 0) == b"\x03"
    files.give_back(second)
    assert descriptors(paths) == before


def test_many_threads_open_a_file_once(files, paths):
    store, before, ready = Store(), descriptors(paths), threading.Barrier(8)
    number, got = files.enrol(store), []

    def work():
        ready.wait()
        got.extend(read(files, number, path) for path in paths)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == sorted([bytes([value]) for value in range(40)] * 8)
    assert descriptors(paths) == before + 40
    files.forget(number)
    assert descriptors(paths) == before


def test_a_store_that_nobody_closed_gives_its_files_back_at_the_next_opening(files, paths):
    store, other, before = Store(), Store(), descriptors(paths)
    for path in paths:
        read(files, files.enrol(store), path)
    del store
    gc.collect()
    number = files.enrol(other)
    read(files, number, paths[0])
    assert descriptors(paths) == before + 1
    files.forget(number)


WITH_LIMIT = """
import os, resource, sys
from maskshards.shards.storage.local import LocalStore
from maskshards.shards.storage.open_files import OPEN_FILES
folder, limit, taken = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
stores = [LocalStore(folder) for _ in range(4)]
def read():
    for number in range(40):
        for store in stores:
            assert store.read(f"{number:03d}.tar", 0, 1) == bytes([number])
read()
held = [os.open("/dev/null", os.O_RDONLY) for _ in range(taken)]
print(len(os.listdir("/proc/self/fd")) - taken <= limit // 2 + 6, len(held))
read()
"""


@pytest.mark.parametrize(("limit", "taken"), [(48, 16), (48, 20)])
def test_the_limit_of_the_process_holds_for_all_stores_together(paths, limit, taken):
    command = [sys.executable, "-c", WITH_LIMIT, str(paths[0].parent), str(limit), str(taken)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == (f"True {taken}\n", "")


def test_at_the_limit_of_the_process_half_is_given_back(files, paths, monkeypatch):
    store, honest, refused = Store(), os.open, []

    def busy(path, flags):
        if len(files._files) >= 6:  # the rest of the process has taken what there was
            refused.append(path)
            raise OSError(24, "Too many open files")
        return honest(path, flags)

    number = files.enrol(store)
    monkeypatch.setattr(os, "open", busy)
    assert [read(files, number, path) for path in paths] == [bytes([value]) for value in range(40)]
    assert len(refused) == 1  # from then on it keeps to less
    files.forget(number)


def test_where_nothing_can_be_given_back_the_error_says_what_to_raise(files, paths, monkeypatch):
    def busy(path, flags):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "open", busy)
    with pytest.raises(StoreError, match=r"000\.tar cannot be opened: Too many open files.*raise ulimit -n"):
        files.take(0, paths[0])


FORKED = """
import os, sys, threading
from maskshards.shards.storage.local import LocalStore
from maskshards.shards.storage.open_files import OPEN_FILES
store = LocalStore(sys.argv[1])
for number in range(30):
    store.read(f"{number:03d}.tar", 0, 1)
before = len(os.listdir("/proc/self/fd"))
with OPEN_FILES._lock:  # another thread's, as far as the child can know
    child = os.fork()
if not child:
    inherited = len(os.listdir("/proc/self/fd"))
    right = all(store.read(f"{number:03d}.tar", 0, 1) == bytes([number]) for number in range(40))
    os._exit(0 if right and inherited == before - 30 else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert store.read("005.tar", 0, 1) == b"\\x05"
"""


def test_a_forked_child_opens_its_own(paths):
    command = [sys.executable, "-c", FORKED, str(paths[0].parent)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
