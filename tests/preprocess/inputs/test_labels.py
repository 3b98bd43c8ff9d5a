import json

import numpy as np
import pytest

from maskshards.preprocess.errors import RejectedInput, SourceError
from maskshards.preprocess.inputs.labels import (
    LabelRule,
    choose_rule,
    read_mapping,
)
from maskshards.shards.format.rle import IGNORE, encode_label_map


def test_reduced_zero_label_is_void_and_the_rest_moves_down():
    rule = LabelRule(3, ignore_index=255, reduce_zero_label=True)
    found = rule.apply(np.array([[0, 1, 2], [3, 255, 1]], np.uint8))
    assert found.dtype == np.uint16
    assert found.tolist() == [[IGNORE, 0, 1], [2, IGNORE, 0]]


def test_plain_labels_stay_and_only_the_ignored_value_is_void():
    rule = LabelRule(3, ignore_index=255)
    assert rule.apply(np.array([[0, 1, 2, 255]], np.uint8)).tolist() == [[0, 1, 2, IGNORE]]


@pytest.mark.parametrize(
    ("rule", "values", "message"),
    [
        (LabelRule(3), [0, 3, 3, 7], r"out of range: 3, 7 \(3 pixels\); expected 0..2, or 255 for void"),
        (LabelRule(3, None, True), [0, 4, 255], r"4, 255 \(2 pixels\); expected 1..3, or 0 for void"),
        (
            LabelRule(2, mapping=((7, 0), (9, 1), (0, None))),
            [7, 8],
            r"8 \(1 pixels\); expected one of the 3 values",
        ),
    ],
)
def test_unknown_values_are_named_and_counted(rule, values, message):
    with pytest.raises(RejectedInput, match=message):
        rule.apply(np.array([values], np.uint8))


def test_a_rule_agrees_with_its_table_for_every_value_and_survives_json():
    for rule in (
        LabelRule(150, None, True),
        LabelRule(300, 65535),
        LabelRule(2, mapping=((7, 1), (40000, 0), (3, None))),
    ):
        assert LabelRule.from_json(json.loads(json.dumps(rule.to_json()))) == rule
        table = rule.table()
        known = np.flatnonzero(table >= 0).astype(np.uint16)
        assert rule.apply(known[None]).tolist() == [table[known].tolist()]


@pytest.mark.parametrize(
    "rule",
    [
        LabelRule(5, 255, True),
        LabelRule(256, None),
        LabelRule(6, None),
        LabelRule(255, 255),
        LabelRule(3, mapping=((0, None), (1, 2), (2, 1), (3, 1), (4, 0), (5, None))),
        LabelRule(3, mapping=((0, 0), (1, 1), (2, 2), (3, None), (4, None), (5, None))),
    ],
)
@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_runs_found_on_values_are_those_of_the_class_map(rule, kind):
    rng = np.random.default_rng(2)
    for top in (1, 2, 6, 256):
        values = rng.integers(0, min(top, 256 if rule.num_classes > 6 else 6), (9, 40)).astype(kind)
        values[3:5] = values[3, 0]
        assert rule.encode(values) == encode_label_map(rule.apply(values))
    assert rule.encode(np.zeros((300, 300), kind)) == encode_label_map(rule.apply(np.zeros((300, 300), kind)))


def test_unknown_values_are_found_on_the_way_to_runs():
    with pytest.raises(RejectedInput, match=r"out of range: 7 \(2 pixels\)"):
        LabelRule(3).encode(np.array([[0, 7, 2], [7, 1, 1]], np.uint8))


def test_mapping_file(tmp_path):
    path = tmp_path / "map.json"
    path.write_text('{"7": 0, "11": 1, "0": null}')
    rule = read_mapping(path, 2)
    assert rule.apply(np.array([[7, 11, 0]], np.uint8)).tolist() == [[0, 1, IGNORE]]
    path.write_text('{"7": 2}')
    with pytest.raises(SourceError, match=r"classes in 0..1"):
        read_mapping(path, 2)
    path.write_text('{"7": 0, "7": 1}')
    with pytest.raises(SourceError, match="stands twice"):
        read_mapping(path, 2)
    path.write_text("[1, 2]")
    with pytest.raises(SourceError, match="not a label mapping"):
        read_mapping(path, 2)


def test_impossible_class_counts():
    with pytest.raises(SourceError, match="0 classes"):
        LabelRule(0)
    with pytest.raises(SourceError, match="65535 classes"):
        LabelRule(65535)
    for value in (-1, 65536):
        with pytest.raises(SourceError, match=f"--ignore-index is {value}"):
            LabelRule(3, ignore_index=value)


@pytest.mark.parametrize(
    ("rule", "values", "hint"),
    [
        (LabelRule(11, None), range(12), r"0\.\.11 for 11 classes: did you mean --reduce-zero-label"),
        (LabelRule(11, None), range(12), r"or --ignore-index 11 \(11 is void\)"),
        (LabelRule(10, 255, True), range(12), r"Values up to 11 for 10 classes: does the list lack one\?"),
        (LabelRule(2, None), [0, 255], r"Values 0 and 255: a mask\? --mapping '\{\"0\": 0, \"255\": 1\}'"),
        (LabelRule(3), [0, 7], "expected 0..2, or 255 for void$"),
    ],
)
def test_values_that_do_not_fit_name_the_likely_rule(rule, values, hint):
    with pytest.raises(RejectedInput, match=hint):
        rule.apply(np.array([list(values)], np.uint8))


def test_a_class_is_void_only_when_asked_for():
    names = tuple(f"c{number}" for number in range(300))
    with pytest.raises(SourceError, match=r"also class 255, 'c255'.*--ignore-index none"):
        choose_rule(names, None, False)
    with pytest.raises(SourceError, match="also class 254"):
        choose_rule(names[:255], None, True)
    assert choose_rule(names, 255, False) == LabelRule(300, 255)
    assert choose_rule(names, None, False, no_void=True) == LabelRule(300, None)
    assert choose_rule(names[:255], None, False) == LabelRule(255, 255)


def test_a_mapping_may_stand_in_the_command_itself():
    assert read_mapping('{"0": 0, "255": 1}', 2) == LabelRule(2, mapping=((0, 0), (255, 1)))
    with pytest.raises(SourceError, match="--mapping: not a label mapping"):
        read_mapping('{"0": ', 2)
    for label in ("0.5", "true", '"road"', "[1]"):
        with pytest.raises(SourceError, match="is no class id and not null"):
            read_mapping(f'{{"0": {label}}}', 2)


def test_more_classes_than_a_batch_carries_are_refused():
    rule = LabelRule(400, 65535)
    assert len(rule.encode(np.arange(254, dtype=np.uint16)[None]).labels) == 254
    with pytest.raises(RejectedInput, match="255 classes in one image, but a batch carries at most 254"):
        rule.encode(np.arange(255, dtype=np.uint16)[None])


@pytest.mark.parametrize(
    ("rule", "gone"),
    [
        (LabelRule(3), []),
        (LabelRule(300), [255]),
        (LabelRule(300, None), []),
        (LabelRule(3, 2, True), [1]),
        (LabelRule(3, None, mapping=((7, 2), (9, 0), (1, None))), [1]),
    ],
)
def test_classes_that_no_value_stands_for_are_known(rule, gone):
    assert rule.classes_without_a_value() == gone


@pytest.mark.parametrize(
    ("mapping", "threshold"),
    [
        ('{"0-127": 0, "128-255": 1}', True),
        ('{"0-9": null, "10 - 255": 0, "256-65535": 1}', True),
        ('{"0": 0, "255": 1}', False),
        ('{"0-99": 0, "100-199": 1, "200-255": 0}', False),  # noise at the edges would be the class between
        ('{"0-255": 0}', False),
    ],
)
def test_ranges_of_values(mapping, threshold):
    rule = read_mapping(mapping, 2)
    again = LabelRule.from_json(json.loads(json.dumps(rule.to_json(), sort_keys=True)))
    for found in (rule, again):  # a manifest sorts its keys as text
        assert found.is_threshold() == threshold
        assert np.array_equal(found.table(), rule.table())


def test_ranges_that_are_none():
    assert read_mapping('{"0-2": 1, "3": 0}', 2) == read_mapping('{"0": 1, "1": 1, "2": 1, "3": 0}', 2)
    with pytest.raises(SourceError, match="a value of '2' stands twice"):
        read_mapping('{"0-2": 1, "2": 0}', 2)
    for key in ("-1", "2-1", "0-70000", "0-", "a", "0-1-2"):
        with pytest.raises(SourceError, match=r"is no value, nor a range|values lie in"):
            read_mapping(json.dumps({key: 0}), 2)
