"""Two data sets: the same, described otherwise, in another order, or with samples that differ in parts."""

import json
from argparse import ArgumentParser
from dataclasses import replace

import numpy as np
import pytest

from maskshards.shards.commands.diff import add_arguments, as_text, compare, run
from maskshards.shards.format.index import ShardInfo
from maskshards.shards.format.manifest import Manifest, open_split, write_split
from maskshards.shards.format.record import Record
from maskshards.shards.format.rle import encode_label_map
from maskshards.shards.format.tar import TarWriter


def record(key, **changes):
    random = np.random.default_rng(list(key.encode()))
    runs = encode_label_map(random.integers(0, 3, (6, 5)).astype(np.uint16))
    made = Record(key, random.bytes(50), "jpg", 6, 5, runs, {"name": key})
    return replace(made, **changes)


@pytest.fixture
def split_of(tmp_path):
    """A split with given records in each shard."""

    def make(name, *shards, split="training", **described):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        infos, entries = [], []
        for number, records in enumerate(shards):
            with TarWriter(folder / f"t-{number:05d}.tar") as writer:
                entries.append([writer.add(r) for r in records])
            infos.append(ShardInfo(f"t-{number:05d}.tar", len(records), writer.num_bytes, writer.sha256))
        write_split(folder, Manifest("made", split, ("a", "b", "c"), tuple(infos), **described), entries)
        return open_split(folder)

    return make


def test_equal_content_is_equal_whatever_the_settings_say(split_of):
    a = split_of("a", [record("x"), record("y")], settings={"workers": 1})
    b = split_of("b", [record("x"), record("y")], settings={"workers": 8})
    facts = compare(a, b)
    assert facts["ok"]
    assert list(facts["described_otherwise"]) == ["settings"]
    assert "only_in_a" not in facts
    assert "the same content" in as_text({"without_partner": [], "splits": [facts]})


def test_changed_samples_are_named_with_the_part_that_changed(split_of):
    other_runs = encode_label_map(np.full((6, 5), 1, np.uint16))
    a = split_of("a", [record("image"), record("mask"), record("facts")], [record("gone"), record("same")])
    b = split_of(
        "b",
        [record("image", image=b"x" * 50), record("mask", runs=other_runs), record("facts", source={})],
        [record("same"), record("new")],
    )
    facts = compare(a, b)
    assert not facts["ok"]
    assert facts["only_in_a"] == {"count": 1, "keys": ["gone"]}
    assert facts["only_in_b"] == {"count": 1, "keys": ["new"]}
    assert facts["changed"]["keys"] == {"image": ["image"], "mask": ["masks", "facts"], "facts": ["facts"]}
    assert facts["same_order"]
    text = as_text({"without_partner": [], "splits": [facts]})
    assert "mask: masks, facts" in text
    assert "only in" in text
    json.dumps(facts)


def test_another_order_or_dealing_is_told_apart_from_other_samples(split_of):
    x, y, z = record("x"), record("y"), record("z")
    a = split_of("a", [x, y], [z])
    for name, shards, order, sizes in (("b", ([y, x], [z]), False, True), ("c", ([x], [y, z]), True, False)):
        facts = compare(a, split_of(name, *shards))
        assert (facts["ok"], facts["same_order"], facts["same_shard_sizes"]) == (False, order, sizes)
        assert facts["changed"]["count"] == facts["only_in_a"]["count"] == facts["only_in_b"]["count"] == 0


def test_a_class_renamed_is_another_content(split_of):
    a = split_of("a", [record("x")])
    b = split_of("b", [record("x")])
    write_split(
        b.base,
        replace(b.manifest, classes=("a", "b", "d")),
        [[b.index(0).entry(0)]],
    )
    facts = compare(a, open_split(b.base))
    assert not facts["ok"]
    assert facts["described_otherwise"]["classes"] == [["a", "b", "c"], ["a", "b", "d"]]
    assert facts["changed"]["count"] == 0


def test_splits_are_paired_by_name(split_of, tmp_path):
    for side in ("left", "right"):
        split_of(f"{side}/training", [record("x")])
    split_of("left/validation", [record("y")], split="validation")
    parser = ArgumentParser()
    add_arguments(parser)
    facts = run(parser.parse_args([str(tmp_path / "left"), str(tmp_path / "right")]))
    assert not facts["ok"]
    assert facts["without_partner"] == [str(tmp_path / "left/validation")]
    assert "no such split" in as_text(facts)
    both = run(parser.parse_args([str(tmp_path / "left/training"), str(tmp_path / "right/training")]))
    assert both["ok"]


def test_many_differences_are_counted_and_some_named(split_of):
    a = split_of("a", [record(f"a{n}") for n in range(80)])
    b = split_of("b", [record(f"b{n}") for n in range(70)])
    facts = compare(a, b)
    assert (facts["only_in_a"]["count"], facts["only_in_b"]["count"]) == (80, 70)
    assert len(facts["only_in_a"]["keys"]) == 50
