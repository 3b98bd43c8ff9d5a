"""The phase clock, with a clock that the test turns."""

import itertools
import time

import pytest
import torch
from torch import nn

from maskshards.train.tracking.phase_timer import PhaseClock, StepPhases, mark_after

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


class Answering(nn.Module):
    """A decoder that names its phases."""

    def phases(self) -> dict[str, nn.Module]:
        return {"linear head": self.segmentation_model[1]}


class Model:
    """What StepPhases looks at of a segmenter with a linear head."""

    def __init__(self) -> None:
        self.backbone, self.decoder, self.replayed = nn.Linear(1, 1), Answering(), False
        self.decoder.segmentation_model = nn.ModuleList([nn.Identity(), nn.Linear(1, 1)])

    def step(self, phases: StepPhases) -> None:
        """A step of two micro-steps."""
        for _ in range(2):
            images = phases.wait_for(lambda: torch.ones(1))
            self.decoder.segmentation_model[1](self.backbone(images))
            phases.mark("loss")
            phases.mark("backward")
        phases.mark("optimiser")


def test_only_the_step_that_is_asked_for_is_timed_and_told_once() -> None:
    phases, model = StepPhases(), Model()
    for now in (True, False):
        with phases.timed(model, CPU, now=now):  # type: ignore[arg-type]
            assert bool(model.backbone._forward_pre_hooks) is now
            model.step(phases)
    spans = phases.take()
    names = ["wait", "crop", "backbone", "linear_head", "loss", "backward", "optimiser", "step"]
    assert list(spans) == [f"{name}_ms" for name in names]
    assert phases.take() == {}
    for module in (model.backbone, *model.decoder.modules()):
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


def test_a_step_that_fails_leaves_no_hook_and_no_figures() -> None:
    phases, model = StepPhases(), Model()
    with pytest.raises(RuntimeError), phases.timed(model, CPU, now=True):  # type: ignore[arg-type]
        raise RuntimeError
    assert phases.take() == {}
    assert not model.backbone._forward_pre_hooks


@pytest.mark.gpu
def test_a_timed_step_makes_the_host_wait_for_nothing() -> None:
    phases, model = StepPhases(), Model()
    model.backbone.cuda()
    model.decoder.cuda()
    ones = torch.ones(1, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        with phases.timed(model, torch.device("cuda"), now=True):  # type: ignore[arg-type]
            model.decoder.segmentation_model[1](model.backbone(ones))
            phases.mark("optimiser")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert phases.take()["step_ms"] > 0


@pytest.mark.gpu
def test_events_time_the_device() -> None:
    clock = PhaseClock(torch.device("cuda"))
    a = torch.ones(4096, 4096, device="cuda")
    clock.start()
    a @ a
    clock.mark("product")
    assert clock.medians_ms(0)["product"] > 0
