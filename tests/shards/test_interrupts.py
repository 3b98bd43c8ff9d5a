"""Ctrl-C and SIGTERM at random moments, in whatever a program does with a loader: it ends, and all of it."""

import os
import random
import signal
import threading

import pytest

from tests import forked

INTERRUPTS = 100  # of each situation
LOADERS = 300  # of one process
LATEST_S = 0.25  # after the loop has begun
PROGRAM = """
import signal, sys
from torch.utils.data import DataLoader
from maskshards import CacheSettings, Loader, evaluation_batches
import maskshards.shards.storage.http  # Python tells an interrupt amid an import as an error of the import

place, doing, folder = sys.argv[1:]
cache = CacheSettings(folder) if doing == "cache" else None
signal.signal(signal.SIGINT, signal.default_int_handler)
try:
    if doing != "workers":
        print("begins", flush=True)
    loader = Loader(place, batch_per_rank=4, cache=cache)
    if doing == "workers":
        # An interrupt while they are forked may be lost in hooks that Python runs there, whatever the data.
        reading = iter(DataLoader(loader, batch_size=None, num_workers=2))
        print("begins", flush=True)
        for _ in reading:
            pass
    while True:
        batches = evaluation_batches(place, batch_per_rank=4) if doing == "evaluate" else loader
        for number, _ in enumerate(batches):
            if doing == "leave" and number == 2:
                break
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("doing", "fault"),
    [
        ("leave", None),
        ("evaluate", None),
        ("read", "silent"),
        ("cache", "silent"),
        ("read", "500"),
        ("read", "drop"),
        ("workers", None),
        ("workers", "silent"),
    ],
)
def test_every_interrupt_ends_the_program(make_split, serve, tmp_path, doing, fault):
    folder = make_split("interrupted", [5, 0, 9, 7]).folder
    place = str(folder)
    if fault:
        server = serve(folder)
        server.choose = lambda name, _: fault if name.endswith(".tar") else ""
        place = server.url
    moments = random.Random(0)
    for number in range(INTERRUPTS // 10 if doing == "workers" else INTERRUPTS):
        words = ["-c", PROGRAM, place, doing, str(tmp_path / f"cache-{number}")]
        with forked.ForkedPython(words, env={**os.environ}) as program:
            assert program.stdout.readline() == "begins\n"
            threading.Event().wait(moments.uniform(0, LATEST_S))
            program.send_signal(signal.SIGINT)
            out, err = program.communicate(timeout=300)
            assert out == "interrupted\n", number
            if (
                doing == "workers"
            ):  # where Python's own thread that hands on their memory may complain of the rest
                err = "" if "resource_sharer" in err and "maskshards" not in err else err
            assert err == "", number
            assert program.returncode == 0


ONE_PROCESS = """
import random, signal, sys, threading
from maskshards import Loader

moments, told = random.Random(0), 0
signal.signal(signal.SIGINT, signal.default_int_handler)
for _ in range(int(sys.argv[2])):
    end = threading.Timer(moments.uniform(0, 0.1), signal.raise_signal, [signal.SIGINT])
    try:
        end.start()
        loader = Loader(sys.argv[1], batch_per_rank=4)
        while True:
            for number, _ in enumerate(loader):
                if number == 5:
                    break
    except KeyboardInterrupt:
        told += 1
    end.join()
    loader.close()
left = [thread for thread in threading.enumerate() if thread.name.startswith("maskshards")]
print(told, len(left))
"""


@pytest.mark.slow
def test_one_process_is_interrupted_again_and_again_and_keeps_no_thread(make_split):
    folder = make_split("interrupted_here", [5, 0, 9, 7]).folder
    done = forked.run(["-c", ONE_PROCESS, str(folder), str(LOADERS)], env={**os.environ})
    assert (done.stdout, done.stderr) == (f"{LOADERS} 0\n", "")


ENDLESS = """
import signal, sys
from torch.utils.data import DataLoader
from maskshards import Loader

place, workers, handler = sys.argv[1:]
if handler == "exits":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
loader = Loader(place, batch_per_rank=4)
if workers != "none":
    loader = DataLoader(loader, batch_size=None, num_workers=2, multiprocessing_context=workers)
for number, _ in enumerate(loader):
    if number == 0:
        print("begins", flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("handler", ["none", "exits"])
@pytest.mark.parametrize("workers", ["none", "fork"])
def test_a_program_that_is_told_to_end_ends_with_all_its_processes(make_split, workers, handler):
    """As batch systems and containers end one. The pipes are at their end once the last process is gone."""
    folder = make_split("terminated", [5, 9]).folder
    moments = random.Random(1)
    for _ in range(5):
        words = ["-c", ENDLESS, str(folder), workers, handler]
        with forked.ForkedPython(words, env={**os.environ}) as program:
            assert program.stdout.readline() == "begins\n"
            threading.Event().wait(moments.uniform(0, LATEST_S))
            program.send_signal(signal.SIGTERM)
            program.communicate(timeout=300)
            assert program.returncode == (3 if handler == "exits" else -signal.SIGTERM)
