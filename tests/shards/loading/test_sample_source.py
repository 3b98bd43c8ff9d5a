"""Rows and bytes of samples from several threads, with what is kept bounded."""

from concurrent.futures import ThreadPoolExecutor

from maskshards.shards.format.manifest import open_split
from maskshards.shards.format.record import from_members
from maskshards.shards.loading import sample_source
from maskshards.shards.loading.loader import Loader
from maskshards.shards.loading.sample_source import SampleSource


def test_many_threads_read_the_same_bytes(make_split):
    made = make_split("sourced", [3, 2])
    splits = (open_split(str(made.folder)),)
    source, places = SampleSource(splits), [(0, shard, row) for shard in range(2) for row in range(2)]
    expected = [SampleSource(splits).members(SampleSource(splits).row(*place)) for place in places]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda place: source.members(source.row(*place)), places * 20))
    assert found == expected * 20
    image, runs = source.image_and_runs(source.row(0, 1, 1))
    assert (image, runs) == (expected[3][0][1], expected[3][2][1])
    assert from_members(expected[3]).key == made.keys[1][1]


def test_few_indexes_stay_in_memory(make_split, monkeypatch):
    monkeypatch.setattr(sample_source, "KEPT_INDEXES", 2)
    made = make_split("indexed", [1] * 5)
    source = SampleSource((open_split(str(made.folder)),))
    for shard in (0, 1, 2, 3, 4, 0):
        assert source.row(0, shard, 0).entry.key == made.keys[shard][0]
    assert len(source._indexes) == 2


def test_as_many_indexes_stay_as_shards_are_read_by_turns(make_split, monkeypatch):
    """One fewer, and each would be read anew at each turn."""
    monkeypatch.setattr(sample_source, "KEPT_INDEXES", 1)
    made = make_split("lanes", [2] * 6)
    split = open_split(str(made.folder))
    read, honest = [], split.index
    monkeypatch.setattr(split, "index", lambda shard: read.append(shard) or honest(shard))
    with Loader(split, batch_per_rank=3, global_batch=6, end=12) as loader:
        monkeypatch.setattr(loader.selection.splits[0], "index", split.index)
        keys = [key for batch in loader for key in batch.keys]
    assert sorted(keys) == sorted(made.truth)
    assert sorted(read) == list(range(6))
