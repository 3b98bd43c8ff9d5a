"""Ctrl-C at random moments, in whatever a program does with a loader: it ends, and says nothing else."""

import os
import random
import signal
import threading

import pytest

from tests import forked

INTERRUPTS = 100  # of each situation
LATEST_S = 0.25  # after the loop has begun
PROGRAM = """
import signal, sys
from maskshards import CacheSettings, Loader, evaluation_batches

place, doing, folder = sys.argv[1:]
cache = CacheSettings(folder) if doing == "cache" else None
signal.signal(signal.SIGINT, signal.default_int_handler)
try:
    print("begins", flush=True)
    loader = Loader(place, batch_per_rank=4, cache=cache)
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
    for number in range(INTERRUPTS):
        words = ["-c", PROGRAM, place, doing, str(tmp_path / f"cache-{number}")]
        with forked.ForkedPython(words, env={**os.environ}) as program:
            assert program.stdout.readline() == "begins\n"
            threading.Event().wait(moments.uniform(0, LATEST_S))
            program.send_signal(signal.SIGINT)
            assert program.communicate(timeout=300) == ("interrupted\n", ""), number
            assert program.returncode == 0
