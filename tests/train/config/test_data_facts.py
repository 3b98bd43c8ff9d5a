"""Splits by either of their names, and classes as many as the manifest lists."""

from pathlib import Path

import pytest

from maskshards.shards.errors import ManifestError
from maskshards.train.config.data_facts import with_data_facts
from maskshards.train.config.load import load_config

MISSING = {"datasets.train", "datasets.val", "decoder_head.num_classes"}


def without(arguments: list[str], keys: set[str]) -> list[str]:
    return [one for one in arguments if one.partition("=")[0] not in keys]


def test_what_the_data_say_is_filled_in(tiny_run: list[str]) -> None:
    given = with_data_facts(load_config(tiny_run))
    found = with_data_facts(load_config(without(tiny_run, MISSING)))
    assert found.decoder_head.num_classes == given.decoder_head.num_classes
    assert (found.datasets.train, found.datasets.val) == ("training", "validation")
    assert with_data_facts(given) == given


def test_a_split_is_found_under_its_other_name(tiny_run: list[str], tmp_path: Path) -> None:
    config = load_config(tiny_run)
    root = Path(config.datasets.root)
    for name, here in (("training", "train"), ("validation", "val")):
        (tmp_path / "shards").mkdir(exist_ok=True)
        (tmp_path / "shards" / here).symlink_to(root / name)
    for train, val in (
        ("training", "validation"),
        ("train", "val"),
        ("A:split=TRAIN", "A:split=VAL"),
        ("", ""),
    ):
        given = [f"datasets.root={tmp_path / 'shards'}", f"datasets.train={train}", f"datasets.val={val}"]
        found = with_data_facts(load_config([*tiny_run, *given])).datasets
        assert (found.train, found.val) == ("train", "val")


def test_a_split_under_neither_name_is_told_by_the_one_that_was_asked_for(
    tiny_run: list[str], tmp_path: Path
) -> None:
    for words, told in (([], "validation"), (["datasets.val=other"], "other")):
        arguments = [*tiny_run, f"datasets.root={tmp_path}", "load_from=x", *words]
        with pytest.raises(ManifestError, match=f"{tmp_path}/{told}: there is no such folder"):
            with_data_facts(load_config(arguments))


def test_data_without_validation_say_what_can_be_done(tiny_run: list[str], tmp_path: Path) -> None:
    root = Path(load_config(tiny_run).datasets.root)
    (tmp_path / "training").symlink_to(root / "training")
    given = [*without(tiny_run, MISSING), f"datasets.root={tmp_path}"]
    with pytest.raises(ManifestError, match=r"/validation: there is no .*datasets\.val=training"):
        with_data_facts(load_config([*given, "datasets.val=null"]))
    assert with_data_facts(load_config([*given, "datasets.val=training"])).datasets.val == "training"
