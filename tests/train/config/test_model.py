import pytest

from maskshards.train.config.model import BackboneLayers, DecoderConfig, ModelConfig
from maskshards.train.keys import ConfigError
from maskshards.train.model.backbone.architectures import LAYER_WORDS


def test_the_enum_has_the_words_that_the_model_knows() -> None:
    assert tuple(BackboneLayers.__members__) == LAYER_WORDS


def test_a_head_is_checked_by_its_own_rules() -> None:
    DecoderConfig(type="linear").check()
    with pytest.raises(ConfigError, match="reads 4 blocks of the backbone"):
        DecoderConfig(type="m2f").check()


def test_a_backbone_must_be_named() -> None:
    with pytest.raises(ConfigError, match=r"model\.dino_hub is not set"):
        ModelConfig().check()
