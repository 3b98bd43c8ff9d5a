"""The phase clock, with a clock that the test turns."""

import itertools
import time

import pytest
import torch
from torch import nn

from train.phases import PhaseClock, mark_after

CPU = torch.device("cpu")


@pytest.fixture
def ticking(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every look at the clock finds it 1, 2, 3, ... ms further than the one before."""
    times = itertools.accumulate(itertools.count(1))
    monkeypatch.setattr(time, "perf_counter", lambda: next(times) / 1000)


def test_a_phase_runs_from_the_mark_before_it(ticking: None) -> None:
    clock = PhaseClock(CPU)
    clock.start()
    clock.mark("first")
    clock.mark("second")
    clock.mark("first")
    assert clock.medians_ms(0) == pytest.approx({"first": 2 + 4, "second": 3, "step": 9})


def test_warm_up_is_left_out_and_the_median_taken(ticking: None) -> None:
    clock = PhaseClock(CPU)
    for _ in range(4):
        clock.start()
        clock.mark("all")
    assert clock.medians_ms(1) == pytest.approx({"all": 6, "step": 6})  # of 4, 6 and 8
    with pytest.raises(ValueError, match="4 taken, 4 of them to warm up"):
        clock.medians_ms(4)


def test_waiting_is_the_hosts_own_time(ticking: None) -> None:
    clock = PhaseClock(CPU)
    clock.start()
    assert clock.wait_for(lambda: "batch") == "batch"
    assert clock.medians_ms(0)["wait"] == pytest.approx(3)


def test_hooks_mark_after_each_module_until_removed() -> None:
    clock = PhaseClock(CPU)
    first, second = nn.Linear(1, 1), nn.Linear(1, 1)
    remove = mark_after(clock, {"a": first, "b": second})
    clock.start()
    second(first(torch.ones(1)))
    remove()
    first(torch.ones(1))
    assert list(clock.medians_ms(0)) == ["a", "b", "step"]


@pytest.mark.gpu
def test_events_time_the_device() -> None:
    clock = PhaseClock(torch.device("cuda"))
    a = torch.ones(4096, 4096, device="cuda")
    clock.start()
    a @ a
    clock.mark("product")
    assert clock.medians_ms(0)["product"] > 0
