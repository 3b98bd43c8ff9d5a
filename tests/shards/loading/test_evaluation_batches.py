"""Each sample once, on any number of ranks, in equal steps."""

import pytest

from maskshards.shards.format.manifest import open_split
from maskshards.shards.loading.cache import CacheSettings, cached
from maskshards.shards.loading.evaluation_batches import evaluation_batches
from maskshards.shards.order.order import World


@pytest.fixture(scope="module")
def made(make_split):
    return make_split("scoring", [5, 1, 0, 9, 4])


@pytest.fixture(scope="module")
def split(made):
    return open_split(made.folder)


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 8, 30])
@pytest.mark.parametrize("max_samples", [None, 7, 1, 100])
def test_evaluation_sees_each_sample_once_in_equal_steps(made, split, num_ranks, max_samples):
    everything = [key for shard in made.keys for key in shard]
    steps, seen = set(), []
    for rank in range(num_ranks):
        batches = list(
            evaluation_batches(split, batch_per_rank=3, world=World(rank, num_ranks), max_samples=max_samples)
        )
        steps.add(len(batches))
        for batch in batches:
            assert len(batch) == 3
            seen += [key for key, valid in zip(batch.keys, batch.valid, strict=True) if valid]
    assert seen == everything[:max_samples]
    assert len(steps) == 1


def test_evaluation_through_a_cache_fetches_each_shard_once(make_split, serve, tmp_path):
    made = make_split("scored", [5, 4, 6])
    server = serve(made.folder)
    split = cached(open_split(server.url), CacheSettings(tmp_path / "cache"))
    batches = list(evaluation_batches(split, batch_per_rank=2))
    split.store.close()
    assert [key for batch in batches for key, ok in zip(batch.keys, batch.valid, strict=True) if ok] == list(
        made.truth
    )
    for shard in made.manifest.shards:
        assert server.bytes_sent[shard.name] == shard.bytes
