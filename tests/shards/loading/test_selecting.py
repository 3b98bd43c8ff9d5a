"""Places, splits and selections all become selections; reopened ones share nothing."""

import pytest

from maskshards.shards.format.manifest import open_split
from maskshards.shards.loading.selecting import reopened, say_if_alone_among_ranks, select
from maskshards.shards.order.order import ALONE, World
from maskshards.shards.order.selection import whole


def test_what_may_be_given_is_one_selection(make_split):
    folder = make_split("selected", [2, 1]).folder
    split = open_split(folder)
    expected = whole(split).fingerprint
    for given in (folder, str(folder), split, whole(split)):
        assert select(given).fingerprint == expected
    chosen = whole(split)
    assert select(chosen) is chosen


def test_reopened_stores_are_others(make_split):
    chosen = select(make_split("reopened", [2]).folder)
    again = reopened(chosen)
    assert again.fingerprint == chosen.fingerprint
    assert again.splits[0].store is not chosen.splits[0].store
    assert again.splits[0].index(0).keys == chosen.splits[0].index(0).keys


@pytest.mark.parametrize("given", [None, b"/tmp", 3, ["a", "b"]])
def test_what_is_no_place_is_named(given):
    with pytest.raises(ValueError, match="expected its folder or URL, a Split or a Selection"):
        select(given)


def test_a_cache_is_described_by_its_settings(make_split, tmp_path):
    with pytest.raises(ValueError, match=r"expected CacheSettings\(folder\)"):
        select(make_split("uncached", [1]).folder, str(tmp_path))


@pytest.mark.parametrize(("rank", "num_ranks", "told"), [(0, 2, False), (1, 2, True), (0, 1, False)])
def test_a_rank_that_reads_what_all_read_is_told(monkeypatch, caplog, rank, num_ranks, told):
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_rank", lambda: rank)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: num_ranks)
    say_if_alone_among_ranks(World(rank, 3))
    assert not caplog.text
    say_if_alone_among_ranks(ALONE)
    assert ("give world=World(1, 2)" in caplog.text) == told
