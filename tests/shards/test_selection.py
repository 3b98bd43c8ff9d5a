"""A whole split is one part a shard."""

from shards.manifest import open_split
from shards.selection import whole


def test_a_whole_split_is_its_shards(make_split):
    split = open_split(str(make_split("selection", [2, 0, 3]).folder))
    selection = whole(split)
    assert selection.shard_samples.tolist() == [2, 0, 3]
    assert selection.locate(2, 1) == (0, 2, 1)
    assert selection.fingerprint == split.manifest.fingerprint
