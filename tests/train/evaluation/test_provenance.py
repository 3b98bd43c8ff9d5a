"""What must agree between a model and its data is an error with the first class that differs."""

from dataclasses import replace

import pytest

from maskshards.shards.format.manifest import Manifest
from maskshards.train.checkpoint.train_state import TrainState
from maskshards.train.config.load import to_plain
from maskshards.train.config.schema import ConfigError, TrainConfig
from maskshards.train.evaluation.provenance import (
    check_against_split,
    check_backbone,
    check_classes,
    told_differences,
)

RULE = {"num_classes": 3, "reduce_zero_label": False}
MANIFEST = Manifest("scenes", "validation", ("sky", "sea", "sand"), (), RULE)
CONFIG = TrainConfig()
CONFIG.model.dino_hub, CONFIG.datasets.root = "dinov3_tiny16", ""
STATE = TrainState(
    1, 2, "f", 2, 0, "dinov3_tiny16", "d" * 8, ["sky", "sea", "sand"], to_plain(CONFIG), label_rule=RULE
)


def test_the_same_is_silent():
    assert check_against_split(STATE, MANIFEST, "x.pth") == []
    assert check_against_split(None, MANIFEST, "x.pth") == []
    assert told_differences(STATE, CONFIG) == []
    check_backbone(STATE, CONFIG, "d" * 8, "x.pth")


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


def test_another_label_rule_is_told():
    other = replace(STATE, label_rule={"num_classes": 3, "reduce_zero_label": True})
    (line,) = check_against_split(other, MANIFEST, "x.pth")
    assert "was num_classes=3, reduce_zero_label=True in the training shards and is num_classes=3, " in line
    assert check_against_split(replace(STATE, label_rule=None), MANIFEST, "x.pth") == []


def test_another_backbone_is_an_error():
    with pytest.raises(ConfigError, match=r"digest dddddddd, but .* has digest eeee"):
        check_backbone(STATE, CONFIG, "eeee", "x.pth")
    with pytest.raises(ConfigError, match="trained on the backbone dinov2_tiny14"):
        check_backbone(replace(STATE, backbone="dinov2_tiny14"), CONFIG, "d" * 8, "x.pth")


def test_another_scale_of_pixels_is_told():
    changed = TrainConfig()
    changed.transforms.std = [1.0, 1.0, 1.0]
    (line,) = told_differences(STATE, changed)
    assert line == "transforms.std was [58.395, 57.12, 57.375] in the training and is [1.0, 1.0, 1.0] now"
