"""The plan that is printed is the stream that is read."""

import argparse
from itertools import islice

import pytest

from maskshards.shards.commands import plan
from maskshards.shards.loading.loader import Loader
from maskshards.shards.order.order import World


@pytest.fixture(scope="module")
def folder(make_split):
    return str(make_split("planned", [5, 0, 8, 3]).folder)


def facts(*words):
    parser = argparse.ArgumentParser()
    plan.add_arguments(parser)
    return plan.run(parser.parse_args([str(word) for word in words]))


@pytest.mark.parametrize(("rank", "ranks", "batch_per_rank"), [(0, 1, 12), (1, 2, 3), (2, 3, 2)])
def test_the_plan_is_what_the_loader_reads(folder, rank, ranks, batch_per_rank):
    words = (
        "--global-batch",
        12,
        "--ranks",
        ranks,
        "--rank",
        rank,
        "--batch-per-rank",
        batch_per_rank,
        "--seed",
        4,
    )
    with Loader(
        folder, batch_per_rank=batch_per_rank, global_batch=12, world=World(rank, ranks), seed=4
    ) as loader:
        for step in range(3):
            batches = list(islice(loader, loader.micro_steps))
            planned = facts(folder, *words, "--step", step)
            assert planned["keys"] == [key for batch in batches for key in batch.keys]
            assert [s["epoch"] for s in planned["samples"]] == [e for batch in batches for e in batch.epochs]


def test_the_text_names_every_sample(folder):
    planned = facts(folder, "--global-batch", 4, "--step", 100)
    text = plan.as_text(planned)
    assert len(text.splitlines()) == 5
    assert all(f"{sample['shard']}  {sample['key']}" in text for sample in planned["samples"])


def test_what_does_not_divide_is_refused(folder):
    with pytest.raises(ValueError, match="would fit"):
        facts(folder, "--global-batch", 16, "--ranks", 3)
    with pytest.raises(ValueError, match="step is -1; expected a whole number from 0"):
        facts(folder, "--global-batch", 16, "--step", -1)
