"""state.json: what it says is what was written, or an error."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from maskshards.train.checkpoint.train_state import CheckpointError, TrainState, read_state, state_json

STATE = TrainState(
    4, 32, "f" * 8, 8, 3, "dinov3_tiny16", "d" * 8, ["sky"], {"optimizer": {"lr": 1e-4}}, score=0.5
)


def test_facts_come_back_with_their_digests(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    path.write_bytes(state_json(STATE, {"weights.safetensors": "0" * 64}))
    assert read_state(path) == replace(STATE, digests={"weights.safetensors": "0" * 64})


def test_the_largest_seed_that_a_recipe_may_name_comes_back(tmp_path: Path) -> None:
    path, largest = tmp_path / "state.json", replace(STATE, seed=(1 << 64) - 1)
    path.write_bytes(state_json(largest, {}))
    assert read_state(path).seed == (1 << 64) - 1


def test_every_changed_fact_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    whole = json.loads(state_json(STATE, {}))
    for name in set(whole) - {"version"}:
        path.write_text(json.dumps(whole | {name: "changed"}))
        with pytest.raises(CheckpointError, match=r"state\.json is damaged"):
            read_state(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "cannot be read"),
        ("[]", "not the state of a checkpoint of version 1"),
        ('{"version": 0}', "not the state of a checkpoint of version 1"),
        ('{"version": 2}', "written by a newer maskshards: it has version 2, this program reads 1"),
        ('{"version": 1, "config": ' + "[" * 200_000, "cannot be read: RecursionError|cannot be read"),
        ('{"version": 1, "step": 4}', "is incomplete"),
        ('{"version": 1, "step": 4, "step": 5}', "the key 'step' stands in it twice"),
        ('{"version": 1, "config": {"bs": 1, "bs": 2}}', "the key 'bs' stands in it twice"),
        ('{"version": 1, "score": NaN}', "NaN is no JSON"),
        ('{"version": 1, "score": -Infinity}', "-Infinity is no JSON"),
        ('{"version": 1, "score": 1e999}', "1e999 is no JSON"),
        ('{"version": 1, "step": ' + "9" * 5000, "cannot be read"),
    ],
)
def test_what_is_no_state_says_so(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "state.json").write_text(text)
    with pytest.raises(CheckpointError, match=words):
        read_state(tmp_path / "state.json")


def test_files_of_older_versions_without_a_checksum_are_read(tmp_path: Path) -> None:
    facts = json.loads(state_json(STATE, {}))
    del facts["checksum"]
    (tmp_path / "state.json").write_text(json.dumps(facts))
    assert read_state(tmp_path / "state.json") == STATE


@pytest.mark.parametrize(
    "wrong",
    [
        {"step": 10**400},
        {"step": -1},
        {"step": True},
        {"seed": 1 << 64},
        {"class_names": 7},
        {"class_names": ["sky", 7]},
        {"config": [1]},
        {"digests": {"../../etc/passwd": "0" * 64}},
        {"digests": {"weights.safetensors": 5}},
        {"score": "high"},
        {"label_rule": []},
        {"label_rule": {"mapping": "x"}},
        {"label_rule": {"mapping": {"x": 1}}},
        {"label_rule": {"mapping": {"65536": 1}}},
        {"label_rule": {"mapping": {"1": "1"}}},
        {"val_fingerprint": ["x"]},
        {"dataset": 7},
    ],
    ids=str,
)
def test_facts_of_a_wrong_kind_are_noticed_without_a_checksum(tmp_path: Path, wrong: dict[str, Any]) -> None:
    facts = json.loads(state_json(STATE, {}))
    del facts["checksum"]
    (tmp_path / "state.json").write_text(json.dumps(facts | wrong))
    with pytest.raises(CheckpointError, match=f"is damaged: its {next(iter(wrong))} is "):
        read_state(tmp_path / "state.json")
