"""Words of two generations and keys of a configuration, told apart."""

import argparse

import pytest

from maskshards.train.prediction.arguments import add_model_options, read_names, sort_words
from maskshards.train.prediction.image_files import PredictError

OLD = {"checkpoint": "run", "inputs": "inputs"}


def test_words_are_options_older_words_or_overrides(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "inputs=here").touch()
    (tmp_path / "bs=1").touch()
    words, given, overrides = sort_words(
        ["run", "inputs=a", "inputs=b=c", "inputs=here", "bs=1", "eval.use_tta=true", "seed=3", "--x", "A=b"],
        OLD,
    )
    assert words == ["run", "inputs=here", "bs=1", "--x", "A=b"]
    assert given == {"inputs": ["a", "b=c"]}
    assert overrides == ["eval.use_tta=true", "seed=3"]


def test_options_of_the_model():
    parser = argparse.ArgumentParser()
    add_model_options(parser)
    words = parser.parse_args(["--weights", "w", "--recipe", "r"])
    assert (words.weights, words.recipe, words.classes) == ("w", "r", None)


def test_names_stand_one_a_line(tmp_path):
    (tmp_path / "names").write_text("\ufeffsky\n\n  sea \n", encoding="utf-8")
    assert read_names(str(tmp_path / "names")) == ["sky", "sea"]
    assert read_names(None) is None
    (tmp_path / "names").write_bytes("sky".encode("utf-16"))
    with pytest.raises(PredictError, match="names is no text in UTF-8"):
        read_names(str(tmp_path / "names"))
