import os
import signal

import pytest
import torch

from shards.order import World
from train.distributed import Ranks
from train.stop import PATIENCE_S, LeftEarly, Stopped, StopSignals

ALONE = Ranks(World(), torch.device("cpu"))


@pytest.mark.parametrize("wish", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_is_noted_and_the_old_handler_comes_back(wish: signal.Signals) -> None:
    before = signal.getsignal(wish)
    with StopSignals() as stop:
        stop.check(ALONE)
        stop.leave()
        os.kill(os.getpid(), wish)
        assert stop.number == wish
        with pytest.raises(Stopped, match=wish.name):
            stop.check(ALONE)
        with pytest.raises(LeftEarly):
            stop.leave()
    assert signal.getsignal(wish) == before


def test_the_first_signal_counts() -> None:
    with StopSignals() as stop:
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.number == signal.SIGUSR1


def test_a_late_second_interrupt_is_obeyed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("train.stop.time.monotonic", lambda: now[0])
    with StopSignals() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.number == signal.SIGINT
        now[0] += PATIENCE_S + 0.1
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
