"""Time an image: what counts, and what does not."""

import multiprocessing
import subprocess
import sys
import time

import pytest

from maskshards.shards.commands.stopwatch import WARM_UP, best_of, cpu_seconds, time_stream, time_work


def spin(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def test_work_is_divided_among_its_images():
    figures = time_work(lambda: spin(0.05), 10)
    assert 5 <= figures["cpu_ms"] < 20
    assert figures["wall_ms"] >= figures["cpu_ms"] * 0.9


def test_a_stream_is_timed_after_its_start_and_closed():
    closed = []

    def stream():
        try:
            for number in range(99):
                spin(0.05 if number < WARM_UP else 0.01)  # starting up
                yield
        finally:
            closed.append(True)

    figures = time_stream(stream, 2, 3)
    assert 5 <= figures["cpu_ms"] < 20  # 0.03 s over 6 images
    assert closed == [True]


def test_a_stream_that_is_too_short_is_refused():
    for length in (3, WARM_UP, WARM_UP + 3):
        with pytest.raises(
            ValueError, match=f"ended after {length} batches; 4 were to be timed after {WARM_UP}"
        ):
            time_stream(lambda length=length: iter(range(length)), 1, 4)


def test_what_was_read_ahead_is_not_had_for_nothing():
    """A stream that has four batches ready when it hands out its first, and from then on works for each."""

    def stream():
        yield from range(5)
        while True:
            spin(0.01)
            yield

    assert 9 <= time_stream(stream, 1, 3)["cpu_ms"] < 40


def test_the_best_round_counts_figure_by_figure():
    rounds = iter([{"cpu_ms": 3.0, "wall_ms": 2.0}, {"cpu_ms": 1.0, "wall_ms": 4.0}])
    assert best_of({"it": lambda: next(rounds)}, 2) == {"it": {"cpu_ms": 1.0, "wall_ms": 2.0}}


WORKER = """
import time
while time.process_time() < 0.3: pass
print("done", flush=True)
input()
"""


def test_workers_count_while_they_live(monkeypatch):
    before = cpu_seconds()
    with subprocess.Popen(
        [sys.executable, "-S", "-c", WORKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as worker:
        worker.stdout.readline()
        monkeypatch.setattr(multiprocessing, "active_children", lambda: [worker])
        while_living = cpu_seconds() - before
        worker.communicate(b"\n")
    assert 0.29 <= while_living < 1
