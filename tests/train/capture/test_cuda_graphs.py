"""When works are recorded, and what stays in place for them."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from maskshards.train.capture.cuda_graphs import (
    WARMUP_ROUNDS,
    CaptureError,
    CudaGraphs,
    Graphs,
    Places,
    Recorded,
    Work,
)


class Noted(Graphs):
    """Says what was asked of it; a replay does the work again."""

    def __init__(self, events: list[str]) -> None:
        self.events = events

    @contextmanager
    def beside(self) -> Iterator[None]:
        self.events.append("beside")
        yield

    def record(self, work: Work) -> Work:
        self.events.append("record")
        work()

        def replay() -> None:
            self.events.append("replay")

        return replay


def test_works_run_as_they_stand_and_are_then_recorded_all_at_once() -> None:
    events: list[str] = []
    works = Recorded(Noted(events), [lambda: events.append("a"), lambda: events.append("b")])
    rounds = []
    for _ in range(WARMUP_ROUNDS + 2):
        events.clear()
        works.begin()
        works.run(0)
        works.run(1)
        rounds.append(list(events))
    assert rounds[:WARMUP_ROUNDS] == [["beside", "a", "beside", "b"]] * WARMUP_ROUNDS
    assert rounds[WARMUP_ROUNDS:] == [["record", "a", "record", "b", "replay", "replay"], ["replay"] * 2]


def test_without_graphs_works_always_run() -> None:
    done: list[int] = []
    works = Recorded(None, [lambda: done.append(1)])
    for _ in range(5):
        works.begin()
        works.run(0)
    assert done == [1] * 5


def test_a_value_is_copied_into_the_place_of_the_first() -> None:
    places = Places()
    places.put("x", torch.ones(3))
    first = places["x"].data_ptr()
    places.put("x", torch.tensor([1.0, 2.0, 3.0]))
    assert places["x"].tolist() == [1.0, 2.0, 3.0]
    assert places["x"].data_ptr() == first


@pytest.mark.parametrize("value", [torch.ones(4), torch.ones(3, dtype=torch.float64)])
def test_another_size_or_type_is_refused(value: torch.Tensor) -> None:
    places = Places()
    places.put("images", torch.ones(3))
    with pytest.raises(CaptureError, match=r"images is .* recorded for \(3,\) torch.float32"):
        places.put("images", value)


def test_what_cannot_be_recorded_says_what_does_without(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def refusing(*_: object, **__: object) -> Iterator[None]:
        raise RuntimeError("operation not permitted when stream is capturing")
        yield

    monkeypatch.setattr(torch.cuda, "graph", refusing)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    graphs = CudaGraphs.__new__(CudaGraphs)
    graphs._pool = graphs._stream = None  # type: ignore[assignment]
    with pytest.raises(CaptureError, match=r"not permitted.*compile_mode=default"):
        graphs.record(lambda: None)


@pytest.mark.gpu
def test_a_recording_repeats_its_work_on_new_values() -> None:
    device, places, out = torch.device("cuda"), Places(), []
    places.put("x", torch.zeros(4, device=device))
    works = Recorded(CudaGraphs(device), [lambda: out.append(places["x"] * 2)])
    for number in range(WARMUP_ROUNDS + 3):
        places.put("x", torch.full((4,), float(number), device=device))
        works.begin()
        works.run(0)
        assert out[-1].tolist() == [2.0 * number] * 4
    assert len(out) == WARMUP_ROUNDS + 1
