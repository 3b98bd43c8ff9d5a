import math
from dataclasses import dataclass

import pytest

from maskshards.train.keys import ConfigError, Rule, check_section, fields_of, key, nearest, rule_of, section


@dataclass
class Inner:
    size: int | None = key(None, "of a thing", at_least=1)

    def check(self) -> None:
        if self.size == 13:
            raise ConfigError("inner.size: not 13")


@dataclass
class Outer:
    rate: float = key(0.5, "a rate", above=0, below=1)
    word: str = key("fast", "a word", one_of=("fast", "slow"))
    names: list[str] = key(["a"], "some names")
    inner: Inner = section(Inner, "things")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"rate": 0.0}, "rate is 0.0, expected a number above 0 and below 1"),
        ({"rate": math.nan}, "rate is nan"),
        ({"word": "fastt"}, r"word is 'fastt', expected one of fast, slow \(did you mean 'fast'\?\)"),
        ({"inner": Inner(0)}, r"x\.inner\.size is 0, expected a number at least 1"),
        ({"inner": Inner(13)}, r"inner\.size: not 13"),
    ],
)
def test_the_first_broken_rule_is_named_with_its_key(change: dict[str, object], expected: str) -> None:
    check_section(Outer())
    with pytest.raises(ConfigError, match=expected):
        check_section(Outer(**change), "x.")  # type: ignore[arg-type]


def test_defaults_that_can_change_are_copied() -> None:
    Outer().names.append("b")
    assert Outer().names == ["a"]


def test_a_rule_says_nothing_about_null_and_bounds_are_inclusive_where_they_say_so() -> None:
    rule = Rule("", at_least=1, at_most=2)
    assert [rule.complaint(value) for value in (None, 1, 2)] == [None] * 3
    assert rule.complaint(3) == "a number at least 1 and at most 2"


def test_every_field_has_its_rule() -> None:
    assert [rule_of(field).meaning for field, _ in fields_of(Outer())] == [
        "a rate", "a word", "some names", "things",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("word", "offered"), [("optimiser.lr", "optimizer.lr"), ("lr", "optimizer.lr"), ("zzzzzz", "known are")]
)
def test_nearest_offers_something(word: str, offered: str) -> None:
    assert offered in nearest(word, ["bs", "optimizer.lr", "seed"])


def test_nearest_knows_other_case_and_stays_in_the_section() -> None:
    assert nearest("BS", ["bs", "seed"]) == "did you mean 'bs'?"
    keys = ["bs", "optimizer", "optimizer.lr", "optimizer.beta1"]
    assert nearest("optimizer.zzzzzzzzzzzzzzzz", keys) == "known are optimizer.lr, optimizer.beta1"
    assert nearest("zzzzzz", keys) == "known are bs, optimizer"


def test_infinity_is_a_number_only_where_a_rule_says_so() -> None:
    assert Rule("", above=0).complaint(math.inf) == "a finite number above 0"
    assert Rule("").complaint(math.nan) == "a finite number"
    clip = Rule("", above=0, may_be_infinite=True)
    assert clip.complaint(math.inf) is None
    assert clip.complaint(-math.inf) == "a finite number above 0"
