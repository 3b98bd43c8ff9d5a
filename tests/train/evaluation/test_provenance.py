"""What must agree between a model and its data is an error with the first class that differs."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from maskshards.shards.format.manifest import Manifest
from maskshards.train.checkpoint.train_state import TrainState
from maskshards.train.config.load import to_plain
from maskshards.train.config.schema import ConfigError, TrainConfig
from maskshards.train.evaluation.provenance import (
    check_against_split,
    check_classes,
    check_trained_on,
    told_differences,
    trained_rule,
    warn_of_another_rule,
)

RULE = {"num_classes": 3, "reduce_zero_label": False}
MANIFEST = Manifest("scenes", "validation", ("sky", "sea", "sand"), (), RULE)
CONFIG = TrainConfig()
CONFIG.model.dino_hub, CONFIG.datasets.root = "dinov3_tiny16", ""
STATE = TrainState(
    1, 2, "f", 2, 0, "dinov3_tiny16", "d" * 8, ["sky", "sea", "sand"], to_plain(CONFIG), label_rule=RULE
)


def backbone(digest: str = "d" * 8, rule: str | None = None, precision: str = "full") -> Any:
    arch = SimpleNamespace(name="dinov3_tiny16")
    return SimpleNamespace(digest=digest, position_rule=rule, arch=arch, precision=precision)


def test_the_same_is_silent(caplog: pytest.LogCaptureFixture) -> None:
    check_against_split(STATE, MANIFEST, "x.pth")
    check_against_split(None, MANIFEST, "x.pth")
    check_trained_on(STATE, CONFIG, backbone(), "x.pth")
    check_trained_on(None, CONFIG, backbone(), "x.pth")
    warn_of_another_rule(STATE, backbone(), "x.pth")
    assert told_differences(STATE, CONFIG) == []
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["sea", "sky", "sand"], "class 0 is 'sea' in the model and 'sky' in the shards; they are the same"),
        (["sky", "sea", "dune"], r"class 2 is 'dune' in the model and 'sand' in the shards\. Build"),
        (["sky", "sea"], "x.pth has 2 classes, the shards of 'scenes' .validation. have 3"),
    ],
)
def test_other_classes_are_an_error_with_the_first_that_differs(names, words):
    with pytest.raises(ConfigError, match=words):
        check_classes(names, MANIFEST, "x.pth")
    with pytest.raises(ConfigError, match=words):
        check_against_split(replace(STATE, class_names=names), MANIFEST, "x.pth")


def test_another_label_rule_is_told(caplog: pytest.LogCaptureFixture) -> None:
    check_against_split(replace(STATE, label_rule=None), MANIFEST, "x.pth")  # of an older version
    assert caplog.text == ""
    other = replace(STATE, label_rule={"num_classes": 3, "reduce_zero_label": True})
    check_against_split(other, MANIFEST, "x.pth")
    assert (
        "was num_classes=3, reduce_zero_label=True in the training shards and is num_classes=3, "
        in caplog.text
    )


def test_another_backbone_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"digest dddddddd, but .* has digest eeee"):
        check_trained_on(STATE, CONFIG, backbone("eeee"), "x.pth")
    with pytest.raises(ConfigError, match="trained on the backbone dinov2_tiny14"):
        check_trained_on(replace(STATE, backbone="dinov2_tiny14"), CONFIG, backbone(), "x.pth")
    with pytest.raises(ConfigError, match="position_rule=None, not size"):
        check_trained_on(STATE, CONFIG, backbone(rule="size"), "x.pth")


def test_starting_from_another_rule_is_told(caplog: pytest.LogCaptureFixture) -> None:
    assert trained_rule(STATE) is None
    warn_of_another_rule(STATE, backbone(rule="size"), "x.pth")
    assert "model.position_rule=None and goes on with size" in caplog.text


def test_features_of_another_precision_are_told(caplog: pytest.LogCaptureFixture) -> None:
    check_trained_on(STATE, CONFIG, backbone(precision="fp8"), "x.pth")
    assert "model.backbone_precision=full, and features are made with fp8 now" in caplog.text


def test_another_scale_of_pixels_is_told():
    changed = TrainConfig()
    changed.transforms.std = [1.0, 1.0, 1.0]
    (line,) = told_differences(STATE, changed)
    assert line == "transforms.std was [58.395, 57.12, 57.375] in the training and is [1.0, 1.0, 1.0] now"
