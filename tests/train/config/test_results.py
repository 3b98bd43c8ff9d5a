import dataclasses

import pytest

from maskshards.train.config.results import METRICS, EvalConfig
from maskshards.train.evaluation.metrics import EvalResult
from maskshards.train.keys import ConfigError


def test_every_metric_is_something_that_an_evaluation_has() -> None:
    known = {field.name for field in dataclasses.fields(EvalResult)} | set(dir(EvalResult))
    assert set(METRICS.values()) <= known


def test_windows_leave_no_gap() -> None:
    EvalConfig(crop_size=64, stride=64).check()
    EvalConfig(mode="whole", crop_size=None, stride=None).check()
    with pytest.raises(ConfigError, match="stride 65, crop 64"):
        EvalConfig(crop_size=64, stride=65).check()
