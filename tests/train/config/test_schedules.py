import math

import pytest

from maskshards.train.config.schedules import DecaySettings, OneCycleSettings, read_decay, read_one_cycle
from maskshards.train.keys import ConfigError


def test_numbers_as_yaml_gives_them() -> None:
    given = {"warmup_iters": 5.0, "final_div_factor": "inf", "warmup_ratio": "1e-6", "use_beta1": False}
    assert read_one_cycle(given) == OneCycleSettings(5, 1e-6, final_div_factor=math.inf)
    assert read_decay({"power": 2}) == DecaySettings(power=2.0)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"warmup_iter": 5}, r"warmup_iter: no such argument; did you mean 'warmup_iters'"),
        ({"warmup_iters": "many"}, r"warmup_iters is 'many', expected int"),
        ({"warmup_iters": -1}, "warmup_iters at least 0"),
        ({"use_beta1": True}, "use_beta1 and update_momentum must be False"),
        ({"anneal_strategy": "poly"}, "expected cos or linear"),
        ({"div_factor": 0.5}, "at least 1"),
    ],
)
def test_what_one_cycle_cannot_take(given: dict[str, object], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        read_one_cycle(given)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"pct_start": 0.1}, "no such argument"),
        ({"power": 0}, "power above 0"),
        ({"min_ratio": 2.0}, r"must lie in 0\.\.1"),
    ],
)
def test_what_a_decay_cannot_take(given: dict[str, object], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        read_decay(given)
