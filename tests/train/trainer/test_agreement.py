"""Ranks with other words, programs or data: named on every rank before the first step."""

import json
from pathlib import Path

import pytest
import torch

from maskshards.shards.order.order import World
from maskshards.train.config.load import load_config
from maskshards.train.config.schema import ConfigError
from maskshards.train.distributed.ranks import Ranks
from maskshards.train.trainer.agreement import check_same, check_same_job, program_digest
from tests.train.launch import ended, ranks_of


class Told(Ranks):
    """Rank 0 of two; `theirs` is what the other one says."""

    theirs: dict[str, object]

    def gather(self, text: str) -> list[str]:
        return [text, json.dumps(json.loads(text) | self.theirs)]


def told(**theirs: object) -> Ranks:
    ranks = Told(World(0, 2), torch.device("cpu"))
    object.__setattr__(ranks, "theirs", theirs)
    return ranks


def test_the_same_on_all_is_no_news() -> None:
    check_same({"seed": 1, "bs": None}, told())
    check_same({"seed": 1}, Ranks(World(), torch.device("cpu")))


def test_the_first_difference_is_named_with_both_values() -> None:
    with pytest.raises(ConfigError, match=r"job: seed is 1 on rank 0 and 2 on rank 1; start every node"):
        check_same({"bs": 4, "seed": 1}, told(seed=2))
    with pytest.raises(ConfigError, match="new is None on rank 0 and 3 on rank 1"):
        check_same({"bs": 4}, told(new=3))


@pytest.mark.parametrize(
    ("name", "theirs"),
    [("optimizer.lr", 0.5), ("the version of torch", "1.0"), ("transforms.train.crop_size", [32, 32])],
)
def test_settings_and_versions_are_compared(tiny_run: list[str], name: str, theirs: object) -> None:
    config = load_config(tiny_run)
    check_same_job(config, told())
    with pytest.raises(ConfigError, match=f"{name} is "):
        check_same_job(config, told(**{name: theirs}))


def test_places_on_a_node_may_differ(tiny_run: list[str]) -> None:
    sent: list[str] = []

    class Noting(Told):
        def gather(self, text: str) -> list[str]:
            sent.append(text)
            return [text]

    check_same_job(load_config(tiny_run), Noting(World(0, 2), torch.device("cpu")))
    keys = json.loads(sent[0]).keys()
    assert {"optimizer.lr", "seed", "scheduler.total_iter", "the version of maskshards"} <= keys
    assert "the digest of the program's files" in keys
    assert not {"datasets.root", "output_dir", "num_workers", "loader.cache_dir", "model.weights"} & keys


def test_a_checkout_of_the_same_version_with_another_source_is_another_program(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for root in (one, other):
        (root / "rooms" / "train").mkdir(parents=True)
        (root / "rooms" / "train" / "loop.py").write_text("steps = 1\n")
        (root / "rooms" / "train" / "notes.txt").write_text(str(root))
        (root / "package").mkdir()
        (root / "package" / "train").symlink_to(root / "rooms" / "train")  # as in a checkout
    assert program_digest(one / "package") == program_digest(other / "package")
    assert program_digest(one / "package") == program_digest(one / "rooms")
    (other / "rooms" / "train" / "loop.py").write_text("steps = 2\n")
    assert program_digest(one / "package") != program_digest(other / "package")
    (one / "rooms" / "train" / "more.py").touch()
    assert program_digest(one / "package") != program_digest(one / "nothing")


# One rank is given other words.
MEMBER = """
import os, sys
from maskshards.train.__main__ import main
sys.exit(main(sys.argv[1:] + (["optimizer.lr=5e-4"] if os.environ["RANK"] == "1" else [])))
"""


@pytest.mark.slow
def test_a_node_with_other_words_ends_the_launch_before_its_first_step(tiny_run: list[str]) -> None:
    with ranks_of(["-c", MEMBER, *tiny_run, "bs=1", "n_gpus=2"]) as members:
        statuses, words = ended(members)
    assert statuses == [2, 2], words
    for said in words:
        assert "optimizer.lr is 0.001 on rank 0 and 0.0005 on rank 1" in said
        assert "Traceback" not in said
