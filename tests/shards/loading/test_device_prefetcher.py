"""The device prefetcher: order, errors and, on CUDA, memory that is not reused too early."""

from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch

from maskshards.shards.batch import FLAT
from maskshards.shards.errors import SampleError
from maskshards.shards.loading import device_prefetcher as transfer
from maskshards.shards.loading.device_prefetcher import DevicePrefetcher


@pytest.fixture
def batches(make_batch, random_scenes):
    return [make_batch(*random_scenes(2, 5, 20, seed)) for seed in range(5)]


def same(one, other):
    return one.keys == other.keys and all(
        torch.equal(getattr(one, name).cpu(), getattr(other, name).cpu()) for name in FLAT
    )


def test_on_the_cpu_batches_pass_through_in_order_without_read_ahead(batches):
    asked = []

    def source():
        for i, batch in enumerate(batches):
            asked.append(i)
            yield batch

    got = []
    for i, batch in enumerate(DevicePrefetcher(source(), "cpu")):
        assert asked == list(range(i + 1))
        got.append(batch)
    assert len(got) == 5
    assert all(same(*pair) for pair in zip(got, batches, strict=True))


class FakeCuda:
    """Stands in for torch.cuda: writes down what is queued, so that the logic runs without a device."""

    def __init__(self):
        self.log, self.current = [], "main"

    def Stream(self, device):
        return "side"

    @contextmanager
    def stream(self, stream):
        self.current = stream
        yield
        self.current = "main"

    def Event(self):
        return self

    def record(self, stream):
        self.log.append("copied")

    def current_stream(self, device):
        return self

    def wait_event(self, event):
        self.log.append("waited")


class FakeBatch:
    def __init__(self, number):
        self.number = number
        self.pixels = self.run_ends = self.run_owners = self
        self.used_on = 0

    def to(self, device, non_blocking):
        assert non_blocking
        return self

    def record_stream(self, stream):
        self.used_on += 1


@pytest.fixture
def cuda(monkeypatch):
    fake = FakeCuda()
    monkeypatch.setattr(transfer.torch, "cuda", fake)
    return fake


def test_two_batches_are_in_flight_and_each_is_waited_for(cuda):
    asked = []

    def source():
        for number in range(4):
            assert cuda.current == "side"
            asked.append(number)
            yield FakeBatch(number)

    steps = iter(DevicePrefetcher(source(), "cuda"))
    for number in range(4):
        batch = next(steps)
        assert batch.number == number
        assert batch.used_on == len(FLAT)
        assert asked == list(range(min(number + 2, 4)))
    assert list(steps) == []
    assert cuda.log == ["copied", "copied", "waited", "copied", "waited", "copied", "waited", "waited"]


class Slow:
    """A source that has read the batches whose numbers are in `read`."""

    def __init__(self):
        self.asked, self.read = [], {0}

    def ready(self):
        return len(self.asked) in self.read

    def __iter__(self):
        for number in range(4):
            self.asked.append(number)
            yield FakeBatch(number)


def test_a_batch_that_is_there_is_handed_out_before_the_source_is_waited_for(cuda):
    source = Slow()
    steps = iter(DevicePrefetcher(source, "cuda"))
    assert next(steps).number == 0
    assert source.asked == [0]  # batch 1 is still being read
    source.read |= {1, 2}
    assert next(steps).number == 1
    assert source.asked == [0, 1, 2]
    assert [batch.number for batch in steps] == [2, 3]


@pytest.mark.parametrize("good", [0, 1, 3])
def test_an_error_comes_after_the_batches_before_it(cuda, good):
    def source():
        yield from map(FakeBatch, range(good))
        raise SampleError("broken", key="k")

    got, moved = [], iter(DevicePrefetcher(source(), "cuda"))
    with pytest.raises(SampleError, match="broken"):
        got.extend(batch.number for batch in moved)
    assert got == list(range(good))


def test_in_flight_must_be_positive():
    with pytest.raises(ValueError, match="in_flight is 0"):
        DevicePrefetcher([], "cpu", in_flight=0)


@pytest.mark.gpu
def test_batches_arrive_whole_while_the_device_is_busy(batches):
    many = [replace(batches[i % 5].pin_memory(), positions=(i, i)) for i in range(60)]
    busy = torch.randn(2048, 2048, device="cuda")
    sums = []
    for batch in DevicePrefetcher(many, "cuda"):
        busy = (busy @ busy).clamp_(-1, 1)  # the consumer's stream lags far behind the copies
        sums.append(batch.pixels.sum(dtype=torch.int64))
        del batch
    expected = [int(batch.pixels.sum(dtype=torch.int64)) for batch in many]
    np.testing.assert_array_equal(torch.stack(sums).cpu().numpy(), expected)
