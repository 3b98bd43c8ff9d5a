"""Counts from the index against counts from the pixels."""

import json
from argparse import ArgumentParser

import numpy as np
import pytest

from maskshards.shards.commands.info import add_arguments, as_text, run


def info(place):
    parser = ArgumentParser()
    add_arguments(parser)
    return run(parser.parse_args([str(place)]))


def test_every_count_is_that_of_the_pixels(make_split):
    made = make_split("counted", [4, 0, 7, 1])
    (found,) = info(made.folder)["splits"]
    maps = [class_map for _, class_map in made.truth.values()]
    assert (found["samples"], found["shards"]) == (12, 4)
    assert found["fingerprint"] == made.manifest.fingerprint
    assert found["bytes"] == sum(path.stat().st_size for path in made.folder.glob("*.tar"))
    assert found["pixels"] == sum(m.size for m in maps)
    for entry in found["classes"]:
        assert entry["pixels"] == sum(int((m == entry["id"]).sum()) for m in maps)
        assert entry["images"] == sum(bool((m == entry["id"]).any()) for m in maps)
    assert found["masks"] == sum(entry["images"] for entry in found["classes"])
    void = sum(int((m == 65535).sum()) for m in maps)
    assert found["void_share"] == pytest.approx(void / found["pixels"])
    assert sum(found["short_sides"].values()) == 12
    assert sum(found["classes_per_image"].values()) == 12
    assert np.prod(found["smallest"]) == min(m.size for m in maps)
    assert np.prod(found["largest"]) == max(m.size for m in maps)
    assert sum(found["image_formats"].values()) == 12
    assert sum(found["member_bytes"].values()) < found["bytes"]
    json.dumps(found)


def test_the_text_names_what_matters(make_split):
    made = make_split("text", [3])
    text = as_text(info(made.folder))
    assert made.manifest.fingerprint in text
    assert "3 in 1 shard," in text
    assert "class 149" in text
    assert "classes have no pixel" in text


def test_a_split_without_samples_has_no_shares(make_split):
    made = make_split("none", [0])
    facts = info(made.folder)
    assert facts["splits"][0]["void_share"] == 0
    assert "0 in 1 shard," in as_text(facts)
