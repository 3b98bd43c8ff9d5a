import pytest

from maskshards.train.config.model import DecoderConfig
from maskshards.train.keys import ConfigError
from maskshards.train.model.heads.rules import HEAD_RULES, head_rules


@pytest.mark.parametrize(
    ("kind", "patch_px", "multiple"),
    [("m2f", 16, 32), ("m2f", 14, 224), ("linear", 16, 16), ("linear", 14, 14)],
)
def test_sides_divide_by_patch_and_coarsest_map(kind: str, patch_px: int, multiple: int) -> None:
    assert head_rules(kind).size_multiple(patch_px) == multiple


def test_an_unknown_head_lists_what_there_is() -> None:
    with pytest.raises(ConfigError, match="expected one of m2f, linear"):
        head_rules("upernet")


def test_width_matters_where_the_head_has_one() -> None:
    HEAD_RULES["linear"].check(DecoderConfig(hidden_dim=100))
    with pytest.raises(ConfigError, match="multiple of 32"):
        HEAD_RULES["m2f"].check(DecoderConfig(hidden_dim=100, backbone_out_layers="FOUR_LAST"))  # type: ignore[arg-type]
