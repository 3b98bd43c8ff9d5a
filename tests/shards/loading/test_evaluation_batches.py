"""Each sample once, on any number of ranks, in equal steps."""

import copy
import pickle

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

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


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # fewer cores than workers
@pytest.mark.parametrize("workers", [None, 0, 2, 3])
def test_a_validation_loop_reads_all_again_and_again(made, split, workers):
    """What frameworks iterate once an epoch: in this process, in workers, after a loop that was left."""
    everything = [key for shard in made.keys for key in shard]
    batches = evaluation_batches(split, batch_per_rank=4)
    source = batches if workers is None else DataLoader(batches, batch_size=None, num_workers=workers)
    assert len(source) == len(batches) == 5
    assert next(iter(source)).keys == tuple(everything[:4])
    for again in (source, source, pickle.loads(pickle.dumps(batches)), copy.copy(batches)):
        rows = [zip(batch.keys, batch.valid, strict=True) for batch in again]
        assert [key for row in rows for key, valid in row if valid] == everything


def test_two_iterations_at_a_time_do_not_touch_each_other(split):
    batches = evaluation_batches(split, batch_per_rank=4)
    pairs = list(zip(batches, batches, strict=True))
    assert len(pairs) == 5
    assert all(one.keys == two.keys for one, two in pairs)


def test_dicts_say_which_rows_only_fill_the_last_batch(made, split):
    def fixed(image, classes, random):
        return np.zeros((8, 8, 3), np.uint8), np.full((8, 8), int(random.integers(100)), np.uint8)

    batches = evaluation_batches(split, batch_per_rank=4, transform=fixed, as_dict=True)
    found = list(batches)
    valid = [key for batch in found for key, real in zip(batch["keys"], batch["valid"], strict=True) if real]
    assert valid == [key for shard in made.keys for key in shard]
    assert [batch["class_maps"].tolist() for batch in batches] == [b["class_maps"].tolist() for b in found]
    assert found[0]["valid"].dtype == torch.bool


@pytest.mark.parametrize(
    "wrong",
    [
        *({"batch_per_rank": 0}, {"batch_per_rank": 10**9}, {"threads": 0}, {"threads": 10**9}),
        *({"prefetch_batches": 10**9}, {"max_samples": 0}, {"max_samples": 2.5}, {"world": None}),
    ],
)
def test_values_without_sense_are_named(split, wrong):
    name = next(iter(wrong))
    with pytest.raises(ValueError, match=f"^{name} is "):
        evaluation_batches(split, **{"batch_per_rank": 1, **wrong})
