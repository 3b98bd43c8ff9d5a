"""Places, splits and selections all become selections; reopened ones share nothing."""

from maskshards.shards.format.manifest import open_split
from maskshards.shards.loading.selecting import reopened, select
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
