"""Time an image: what counts, and what does not."""

import multiprocessing
import os
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from maskshards.shards.commands import stopwatch
from maskshards.shards.commands.stopwatch import WARM_UP, best_of, cpu_seconds, time_stream, time_work


class Clocks:
    """A processor's clock and the wall's, that only work moves on."""

    def __init__(self):
        self.cpu = self.wall = 1000.0

    def work(self, cpu, wall):
        self.cpu, self.wall = self.cpu + cpu, self.wall + wall


@pytest.fixture
def clocks(monkeypatch):
    clocks = Clocks()
    monkeypatch.setattr(stopwatch, "cpu_seconds", lambda: clocks.cpu)
    monkeypatch.setattr(stopwatch, "time", SimpleNamespace(perf_counter=lambda: clocks.wall))
    return clocks


def test_work_is_divided_among_its_images(clocks):
    figures = time_work(lambda: clocks.work(0.5, 0.8), 10)
    assert figures == pytest.approx({"cpu_ms": 50, "wall_ms": 80})


def test_a_stream_is_timed_after_its_start_and_closed(clocks):
    closed = []

    def stream():
        try:
            for number in range(99):
                clocks.work(*((7, 9) if number < WARM_UP else (0.03, 0.06)))  # starting up
                yield
        finally:
            closed.append(True)

    figures = time_stream(stream, 2, 3)
    assert figures == pytest.approx({"cpu_ms": 15, "wall_ms": 30})  # 0.09 s and 0.18 s over 6 images
    assert closed == [True]


def test_a_stream_that_is_too_short_is_refused():
    for length in (3, WARM_UP, WARM_UP + 3):
        with pytest.raises(
            ValueError, match=f"ended after {length} batches; 4 were to be timed after {WARM_UP}"
        ):
            time_stream(lambda length=length: iter(range(length)), 1, 4)


def test_what_was_read_ahead_is_not_had_for_nothing(clocks):
    """A stream that has four batches ready when it hands out its first, and from then on works for each."""

    def stream():
        yield from range(5)
        while True:
            clocks.work(0.01, 0.01)
            yield

    assert time_stream(stream, 1, 3)["cpu_ms"] == pytest.approx(10)


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
    def reaped():
        times = os.times()
        return times.children_user + times.children_system

    before, reaped_before, own = cpu_seconds(), reaped(), time.process_time()
    with subprocess.Popen(
        [sys.executable, "-S", "-c", WORKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as worker:
        worker.stdout.readline()
        monkeypatch.setattr(multiprocessing, "active_children", lambda: [worker])
        while_living = cpu_seconds() - before
        worker.communicate(b"\n")
    assert while_living >= 0.29  # the worker's; this process has some of its own
    assert while_living <= reaped() - reaped_before + time.process_time() - own + 0.02  # as the kernel counts
