import pytest

from maskshards.train.config.optimisation import OptimizerConfig
from maskshards.train.keys import ConfigError


@pytest.mark.parametrize("factor", [0.0, -1.0, float("inf"), "x", [1.0]])
def test_multipliers_are_numbers_above_zero(factor: object) -> None:
    with pytest.raises(ConfigError, match=r"segmentation_model\.0 is"):
        OptimizerConfig(lr_multipliers={"segmentation_model.0": factor}).check()  # type: ignore[dict-item]
