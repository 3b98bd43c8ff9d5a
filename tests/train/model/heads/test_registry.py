import pytest

from maskshards.train.keys import ConfigError
from maskshards.train.model.heads.registry import HEADS, head_called
from maskshards.train.model.heads.rules import HEAD_RULES


def test_rules_that_need_no_torch_and_heads_are_of_the_same_names() -> None:
    assert HEADS.keys() == HEAD_RULES.keys()
    for name, head in HEADS.items():
        assert head.rules is HEAD_RULES[name]
        assert head.decoder.rules is HEAD_RULES[name]
        assert head.decoder.__name__ == HEAD_RULES[name].decoder


def test_an_unknown_head_lists_what_there_is() -> None:
    with pytest.raises(ConfigError, match="expected one of m2f, linear"):
        head_called("upernet")
