"""The lock's share is found where there is one, and not where there is none."""

import time
from itertools import repeat

import pytest

from maskshards.shards.commands.interference import _repeating, interference


class Batch:
    """Stands for a batch of two images."""

    def __len__(self):
        return 2


def holding_the_lock():
    """Batches that cost 4 ms of plain Python each: at 100 images a second, a fifth of all time."""
    while True:
        end = time.thread_time() + 0.004
        while time.thread_time() < end:
            pass
        yield Batch()


@pytest.mark.slow  # it compares times, which a busy machine blurs
def test_a_loader_that_holds_the_lock_is_found_out():
    found = interference(holding_the_lock(), turns=5, turn_seconds=0.2)
    assert found["slowed_by"] > 0.02
    assert found["loader_cpu"] > 0.05
    assert found["images_per_second"] == 100


def test_a_loader_that_does_nothing_is_not_blamed():
    found = interference(repeat(Batch()), turns=3, turn_seconds=0.2)
    assert found["loader_cpu"] < 0.05


def test_an_error_of_the_load_is_raised():
    def fail():
        raise OSError("no more batches")

    def use():
        with _repeating(fail, 0.01):
            pass

    with pytest.raises(OSError, match="no more batches"):
        use()
