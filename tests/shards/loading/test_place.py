"""The next batch, passes and ends, in the parent and in made-up worker processes."""

import copy
import logging
import pickle

import pytest
from torch.utils.data import get_worker_info
from torch.utils.data._utils import worker

from maskshards.shards.loading import place as module
from maskshards.shards.loading.place import Place, Share


@pytest.fixture
def be_worker(monkeypatch):
    """Makes `get_worker_info` answer as in worker `number` of `how_many`; None: as in the parent."""

    def be(number, how_many=0):
        info = worker.WorkerInfo(id=number, num_workers=how_many, seed=0, dataset=None)
        monkeypatch.setattr(module, "get_worker_info", get_worker_info if number is None else lambda: info)

    return be


def run(place, batches=None):
    """Hand out so many batches of an iteration, or all: their numbers."""
    share, found = place.begin(), []
    for number in share.numbers():
        if batches is not None and len(found) == batches:
            return found
        place.handed_out()
        found.append(number)
    return found


def test_passes_follow_each_other():
    place = Place(0, 1, per_pass=3, end=8)
    assert [run(place) for _ in range(4)] == [[0, 1, 2], [3, 4, 5], [6, 7], []]
    assert place.next == 8


def test_a_pass_broken_off_is_continued_from_its_last_whole_step():
    place = Place(0, 2, per_pass=6, end=None)
    assert run(place, 3) == [0, 1, 2]
    assert place.next == 3
    assert run(place) == [2, 3, 4, 5]
    assert run(place) == [6, 7, 8, 9, 10, 11]


@pytest.mark.parametrize(
    ("number", "per_pass", "end", "expected"),
    [(0, 5, None, 5), (7, 5, None, 5), (0, 5, 12, 5), (10, 5, 12, 2), (12, 5, 12, 2), (4, None, 12, 8)],
)
def test_the_length_is_that_of_a_whole_pass(number, per_pass, end, expected):
    assert Place(number, 1, per_pass, end).pass_length() == expected


def test_an_endless_stream_has_no_length_and_no_pass_to_go_to():
    place = Place(4, 1, None, None)
    with pytest.raises(TypeError, match="epochs= or end="):
        place.pass_length()
    assert not place.go_to_pass(7)
    assert place.next == 4


def test_a_pass_that_is_under_way_is_not_begun_again():
    place = Place(0, 1, 4, None)
    run(place, 2)
    assert not place.go_to_pass(0)
    assert place.next == 2
    assert place.go_to_pass(3)
    assert run(place) == [12, 13, 14, 15]
    assert not place.go_to_pass(4)


@pytest.mark.parametrize("workers", [1, 2, 3, 5])
def test_workers_deal_a_pass_among_them(be_worker, workers):
    place = Place(4, 1, 4, None)
    found = []
    for number in range(workers):
        be_worker(number, workers)
        found.append(run(copy.deepcopy(place)))
    dealt = [found[k % workers][k // workers] for k in range(4)]
    assert dealt == [4, 5, 6, 7]
    assert sum(map(len, found)) == 4


def test_a_worker_begins_where_the_parent_stands_now(be_worker, caplog):
    place = Place(0, 1, 4, None)
    inside = copy.copy(place)  # as a fork does: the same shared memory
    be_worker(0, 2)
    assert run(inside) == [0, 2]
    with caplog.at_level(logging.WARNING):
        assert run(inside) == [0, 2]
    assert "call set_epoch" in caplog.text
    place.go_to_pass(1)
    caplog.clear()
    assert run(inside) == [4, 6]
    assert not caplog.text
    be_worker(None)
    assert place.next == 4


def test_a_worker_continues_from_its_own_state(be_worker):
    be_worker(1, 2)
    first = Place(0, 1, 5, None)
    run(first, 1)
    state = first.worker_state()
    assert state == {"worker": 1, "num_workers": 2, "next_batch": 3, "stop_batch": 5}
    again = Place(0, 1, 5, None)
    again.go_to(0, state)
    assert again.worker_state() == state
    assert run(again) == [3]
    done = Place(0, 1, 5, None)
    done.go_to(0, again.worker_state())
    assert run(done) == []  # its share of the pass is read, though the pass may not be
    for number, how_many in ((0, 2), (1, 3), (None, 0)):
        be_worker(number, how_many)
        with pytest.raises(ValueError, match="num_workers=2"):
            Place(0, 1, 5, None).go_to(0, state)


def test_a_worker_takes_its_share_from_a_state_of_the_whole(be_worker):
    be_worker(1, 3)
    place = Place(0, 2, 8, None)
    place.go_to(3, {})
    assert run(place) == [4, 7]


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda place: pickle.loads(pickle.dumps(place))])
def test_a_duplicate_goes_its_own_way(duplicate):
    place = Place(0, 1, 4, None)
    run(place, 3)
    other = duplicate(place)
    assert run(other) == [3]
    assert place.next == 3
    assert run(place) == [3]


def test_a_state_inside_a_step_is_continued_exactly():
    place = Place(0, 3, None, 9)
    place.go_to(4, {})
    assert place.begin() == Share(4, 1, 9)
