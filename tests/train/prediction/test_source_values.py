"""Class ids go back to the values that label files held."""

import numpy as np
import pytest

from maskshards.preprocess.inputs.labels import LabelRule
from maskshards.train.prediction.image_files import PredictError
from maskshards.train.prediction.source_values import rule_of, source_values

RULES = [
    LabelRule(4),
    LabelRule(4, reduce_zero_label=True),
    LabelRule(4, mapping=((7, 0), (8, 1), (11, 2), (12, 3), (0, None))),
    LabelRule(2, mapping=((0, 0), (255, 1))),
]


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_the_builds_own_rule_brings_the_values_back_to_the_ids(rule):
    values = source_values(rule.to_json(), rule.num_classes)
    assert np.array_equal(rule.apply(values[None].astype(np.uint16))[0], np.arange(rule.num_classes))


def test_ade20ks_server_wants_1_to_150():
    assert source_values({"reduce_zero_label": True}, 150).tolist() == list(range(1, 151))


def test_of_several_values_the_lowest_stands_for_a_class():
    assert source_values({"mapping": {"9": 0, "3": 0, "5": 1}}, 2).tolist() == [3, 5]


def test_a_rule_that_cannot_be_turned_round_is_an_error():
    with pytest.raises(PredictError, match="gives class 1 no value"):
        source_values({"mapping": {"3": 0}}, 2)
    with pytest.raises(PredictError, match="were made by colours, not by one value a class"):
        source_values({"num_classes": 2, "colours": {}}, 2)


def test_older_checkpoints_say_it_in_their_configuration():
    assert rule_of({"reduce_zero_label": False}, {"eval": {"reduce_zero_label": True}}) == {
        "reduce_zero_label": False
    }
    assert rule_of(None, {"eval": {"reduce_zero_label": True}}) == {"reduce_zero_label": True}
    assert rule_of(None, {"eval": {"reduce_zero_label": None}}) is None
    assert rule_of(None, {}) is None
