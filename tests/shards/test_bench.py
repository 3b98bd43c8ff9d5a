"""The benchmark command: every stage is measured, and wrong words are refused."""

import argparse
import json

import pytest

from shards import bench
from shards.__main__ import main

STAGES = ["read", "decompress", "decode", "pack", "crop", "loader", "all", "limit"]
SMALL = ["--batch", "3", "--batches", "2", "--rounds", "1", "--crop", "32", "--device", "cpu"]


@pytest.fixture(scope="module")
def split(make_split):
    return make_split("benched", [5, 4])


def test_every_stage_is_measured(split, capsys):
    assert main(["bench", str(split.folder), *SMALL, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["batch"], facts["batches"]) == (3, 2)
    assert list(facts["stages"]) == STAGES
    assert all(0 < figure for stage in facts["stages"].values() for figure in stage.values())
    assert facts["bottleneck"] in STAGES[:5]
    limit, loader = facts["stages"]["limit"], facts["stages"]["loader"]
    assert facts["of_limit"] == pytest.approx(limit["wall_ms"] / loader["wall_ms"])


def test_the_table_names_the_bottleneck():
    stages = {name: {"cpu_ms": 0.5, "wall_ms": 0.25} for name in STAGES}
    facts = {
        "batches": 2,
        "batch": 3,
        "threads": 2,
        "crop": 32,
        "photometric": "none",
        "device": "cpu",
        "stages": stages,
        "bottleneck": "decode",
        "of_limit": 0.83,
        "of_limit_cpu": 0.9,
    }
    text = bench.as_text(facts)
    assert "decode                 0.500          0.250      4000" in text
    assert "bottleneck: decode" in text
    assert "83%" in text


def test_the_best_round_counts(monkeypatch, split):
    figures = iter(
        [{"cpu_ms": 3.0, "wall_ms": 2.0}] * len(STAGES) + [{"cpu_ms": 1.0, "wall_ms": 4.0}] * len(STAGES)
    )
    monkeypatch.setattr(bench, "_timed", lambda work, num_images: next(figures))
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    words = parser.parse_args([str(split.folder), *SMALL, "--rounds", "2"])
    assert bench.run(words)["stages"]["read"] == {"cpu_ms": 1.0, "wall_ms": 2.0}


@pytest.mark.parametrize("word", ["--batch", "--batches", "--rounds", "--threads"])
def test_counts_must_be_positive(split, capsys, word):
    assert main(["bench", str(split.folder), *SMALL, word, "0"]) == 2
    assert f"{word} is 0; expected at least 1" in capsys.readouterr().err
