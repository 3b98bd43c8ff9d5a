"""Words as people type them on a command line."""

from typing import Any

import pytest

from maskshards.train.config.load import load_config
from maskshards.train.config.schema import TrainConfig
from maskshards.train.config.typed_words import as_typed, hints_of, multiplier
from maskshards.train.keys import ConfigError

HINTS: dict[str, Any] = dict(hints_of(TrainConfig, ""))


def load(*words: str) -> TrainConfig:
    return load_config(["config=demo", "data=x", "out=y", *words])


@pytest.mark.parametrize(
    ("word", "typed"),
    [
        ("output_dir=007", 'output_dir="007"'),
        ("output_dir='007'", "output_dir='007'"),
        ("bs=1e3", "bs=1000"),
        ("ema.decay=None", "ema.decay=null"),
        ("datasets.val=null", "datasets.val=''"),
        ("optimizer.lr=0.5", "optimizer.lr=0.5"),
        ("optimizer.lr=0", "optimizer.lr=0"),
    ],
)
def test_a_word_has_the_type_of_its_key(word: str, typed: str) -> None:
    assert as_typed(word, HINTS) == typed


@pytest.mark.parametrize("number", ["010", "1:30", "0x10", "0b11", "08", "-010", " 010"])
@pytest.mark.parametrize("key", ["bs", "optimizer.lr", "global_batch"])
def test_a_number_that_would_be_another_one_to_yaml_is_refused(key: str, number: str) -> None:
    with pytest.raises(ConfigError, match=f"{key} is '{number}', expected a decimal number"):
        load(f"{key}={number}")


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("optimizer.lr=fast", "optimizer.lr is 'fast', expected a number"),
        ("optimizer.lr=", "optimizer.lr is empty, expected a number"),
        ("bs=1.5", "bs is '1.5', expected a whole number"),
        ("log.report=maybe", "log.report is 'maybe', expected true or false"),
        ("transforms.train.crop_size=64,64", "transforms.train.crop_size is no list, expected a list in"),
        ("transforms.train.crop_size=[64,a]", "transforms.train.crop_size[1] is 'a', expected a whole"),
        ("model_dtype=fp16", "model_dtype: Invalid value 'fp16', expected one of [FLOAT32, BFLOAT16]"),
    ],
)
def test_what_does_not_fit_is_told_with_what_would(word: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(word)
    assert str(caught.value).startswith(told)
    assert "\n" not in str(caught.value)


def test_dots_in_the_name_of_a_parameter_open_no_sections() -> None:
    assert multiplier("optimizer.lr_multipliers.a.0=0.5") == ("a.0", 0.5)
