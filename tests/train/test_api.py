"""A training from Python gives what the command gives, and its result can be used at once."""

from pathlib import Path

import numpy as np
import pytest
import torch

import maskshards
from maskshards.train.api import as_word, words_of
from maskshards.train.config.schema import ConfigError, ModelDtype


def as_keys(words: list[str]) -> dict[str, str]:
    return dict(word.split("=", 1) for word in words)


def test_a_training_from_python(tiny_run: list[str], tmp_path: Path) -> None:
    keys = as_keys(tiny_run)
    result = maskshards.train(keys, scheduler={"total_iter": 2}, eval={"eval_interval": 2})
    assert result.folder == tmp_path / "run"
    assert result.weights.is_file()
    assert (tmp_path / "run" / "config.yaml").read_text().startswith("# given: maskshards train ")
    assert result.summary.startswith("mIoU ")
    assert result.scores["num_images"] == 4
    assert result.miou == pytest.approx(float(result.summary.split()[1]), abs=0.01)
    class_map = result.model("cpu").predict(np.zeros((40, 50, 3), np.uint8))
    assert class_map.shape == (40, 50)
    with pytest.raises(ConfigError, match="already holds a run"):
        maskshards.train(keys)


def test_recipes_dictionaries_and_keys_become_words(tmp_path: Path) -> None:
    assert words_of("demo.yaml", {"seed": 3}) == ["config=demo.yaml", "seed=3"]
    assert words_of(Path("a/b.yaml"), {}) == ["config=a/b.yaml"]
    assert words_of({"model": {"weights": "random"}, "bs": 2}, {"optimizer.lr": 1e-4}) == [
        "model.weights=random",
        "bs=2",
        "optimizer.lr=0.0001",
    ]
    assert words_of(None, {}) == []


@pytest.mark.parametrize(
    ("value", "word"),
    [(None, "null"), (True, "true"), ((64, 64), "[64, 64]"), ([0.5, 2.0], "[0.5, 2.0]"), ("a b", "a b"),
     (Path("/x"), "/x"), (1e-4, "0.0001"), (np.int64(3), "3"), (torch.tensor([1.0, 2.0]), "[1.0, 2.0]"),
     (ModelDtype.BFLOAT16, "BFLOAT16"), (float("inf"), "Infinity")],
)  # fmt: skip
def test_values_are_written_as_on_a_command_line(value: object, word: str) -> None:
    assert as_word(value) == word


def test_what_no_command_line_could_say_is_refused_by_its_key() -> None:
    with pytest.raises(ValueError, match="model_dtype is a dtype, expected"):
        maskshards.train("demo", model_dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="config is a int, expected a recipe"):
        maskshards.train(3)  # type: ignore[arg-type]


def test_a_wrong_key_is_the_same_error_as_on_the_command_line() -> None:
    with pytest.raises(ConfigError, match=r"optimiser.lr.*did you mean 'optimizer.lr'"):
        maskshards.train({"optimiser": {"lr": 1}})


def test_the_room_is_still_a_package() -> None:
    import maskshards.train.config.schema as schema

    assert maskshards.train.config.schema is schema
    assert callable(maskshards.train)
