"""Patience has a number and an end."""

import threading

import pytest

from maskshards.shards.errors import StoreError
from maskshards.shards.storage.retry import MOST_ASKED_S, RetrySettings, Transient, delays, with_retries

QUICK = RetrySettings(attempts=4, first_delay_s=0.0001)


def failing(times):
    calls = []

    def attempt():
        calls.append(1)
        if len(calls) <= times:
            raise Transient("cut")
        return len(calls)

    return attempt, calls


def test_delays_double_up_to_a_limit_and_are_scattered():
    settings = RetrySettings(attempts=5, first_delay_s=1, longest_delay_s=3)
    assert delays(settings, lambda: 0.0) == [1, 2, 3, 3]
    assert delays(settings, lambda: 1.0) == [0.5, 1, 1.5, 1.5]


@pytest.mark.parametrize("times", [0, 1, 3])
def test_what_passes_is_tried_again(times):
    attempt, _ = failing(times)
    assert with_retries(attempt, "a.tar", QUICK, threading.Event()) == times + 1


def test_in_the_end_the_error_names_the_place_and_the_reason():
    attempt, calls = failing(99)
    with pytest.raises(StoreError, match=r"http://x/a\.tar: cut, 4 attempts in all"):
        with_retries(attempt, "http://x/a.tar", QUICK, threading.Event())
    assert len(calls) == 4


def test_what_does_not_pass_is_not_tried_again():
    calls = []

    def attempt():
        calls.append(1)
        raise StoreError("404")

    with pytest.raises(StoreError, match="404"):
        with_retries(attempt, "a.tar", QUICK, threading.Event())
    assert len(calls) == 1


def test_stopping_ends_the_waiting():
    stopped = threading.Event()
    stopped.set()
    attempt, calls = failing(99)
    with pytest.raises(StoreError, match="closed meanwhile"):
        with_retries(attempt, "a.tar", RetrySettings(first_delay_s=1000), stopped)
    assert len(calls) == 1


class Clock:
    """In the place of the event: notes how long it is waited for."""

    def __init__(self):
        self.pauses = []

    def is_set(self):
        return False

    def wait(self, pause):
        self.pauses.append(pause)
        return False


def test_a_server_may_ask_for_more_time_but_not_for_any(caplog):
    asks = iter([7.0, 0.0, 1e6])

    def attempt():
        wait_s = next(asks, None)
        if wait_s is not None:
            raise Transient("busy", wait_s)
        return "here"

    clock = Clock()
    assert with_retries(attempt, "a.tar", RetrySettings(first_delay_s=1), clock) == "here"
    assert clock.pauses == [7.0, clock.pauses[1], MOST_ASKED_S]
    assert 1 <= clock.pauses[1] <= 2
    assert [line.partition("attempt")[2] for line in caplog.messages] == [
        " 2 follows in 7.0 s",
        " 4 follows in 60.0 s",
    ]  # long waits are warned of
