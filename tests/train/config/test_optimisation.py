import pytest

from maskshards.train.config.optimisation import LinearLossConfig, OptimizerConfig, SchedulerConfig
from maskshards.train.config.schedules import READERS
from maskshards.train.keys import ConfigError, check_section
from maskshards.train.optim.lr_schedule import MAKERS


@pytest.mark.parametrize("factor", [0.0, -1.0, float("inf"), "x", [1.0]])
def test_multipliers_are_numbers_above_zero(factor: object) -> None:
    with pytest.raises(ConfigError, match=r"segmentation_model\.0 is"):
        OptimizerConfig(lr_multipliers={"segmentation_model.0": factor}).check()  # type: ignore[dict-item]


def test_every_schedule_can_be_named_and_no_other() -> None:
    assert set(READERS) == set(MAKERS)


def test_a_loss_of_no_weight_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"train\.celoss_weight is 0\.0, expected a number above 0"):
        check_section(LinearLossConfig(celoss_weight=0.0), "train.")


def test_keys_of_a_schedule_are_checked_with_all_others() -> None:
    with pytest.raises(ConfigError, match=r"warmup_iter: no such argument; did you mean 'warmup_iters'"):
        check_section(SchedulerConfig(constructor_kwargs={"warmup_iter": 5}), "scheduler.")
