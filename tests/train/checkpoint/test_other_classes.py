"""Starting from a head of other classes: all but the classifier stays, rows follow the names."""

from dataclasses import replace

import pytest
import torch

from maskshards.train.checkpoint.checkpoint import CheckpointError, read_checkpoint
from maskshards.train.checkpoint.other_classes import load_by_class, rows_by_class, shared_classes
from maskshards.train.trainer.build import build_model
from tests.train.trained_run import NAMES, save_run, small_config

NOW = ["cloud", "sea", "sky"]
CLASSIFIER = {"m2f": "segmentation_model.1.predictor.class_embed", "linear": "segmentation_model.1.conv"}


@pytest.mark.parametrize("kind", ["m2f", "linear"])
def test_all_but_the_classifier_stays_and_rows_follow_the_names(kind, tmp_path):
    checkpoint = read_checkpoint(save_run(tmp_path / "run", kind))
    decoder = build_model(small_config(kind, NOW), torch.device("cpu")).decoder
    fresh = {key: value.clone() for key, value in decoder.state_dict().items()}
    told = load_by_class(decoder, checkpoint, NOW)
    assert "was trained on 4 classes, here are 3 others" in told
    assert told.endswith("its rows are kept for 2 classes of the same name: sea, sky")
    for key, value in decoder.state_dict().items():
        if not key.startswith(CLASSIFIER[kind]):
            assert torch.equal(value, checkpoint.weights[key])
            continue
        before = checkpoint.weights[key]
        assert torch.equal(value[1], before[NAMES.index("sea")])
        assert torch.equal(value[2], before[NAMES.index("sky")])
        assert torch.equal(value[0], fresh[key][0])
        assert (kind == "linear") == (len(value) == 3)
        if kind == "m2f":
            assert torch.equal(value[3], before[4])  # no object


def test_the_same_classes_are_taken_whole(tmp_path):
    checkpoint = read_checkpoint(save_run(tmp_path / "run"))
    decoder = build_model(small_config(), torch.device("cpu")).decoder
    assert load_by_class(decoder, checkpoint, NAMES) == ""
    assert all(torch.equal(value, checkpoint.weights[key]) for key, value in decoder.state_dict().items())


def test_the_same_names_in_another_order_follow_their_names(tmp_path):
    checkpoint = read_checkpoint(save_run(tmp_path / "run"))
    decoder = build_model(small_config(), torch.device("cpu")).decoder
    assert "its rows are kept for 4 classes" in load_by_class(decoder, checkpoint, NAMES[::-1])
    key = f"{CLASSIFIER['linear']}.weight"
    assert torch.equal(decoder.state_dict()[key], checkpoint.weights[key].flip(0))


def test_weights_without_facts_keep_all_where_the_number_is_the_same(tmp_path):
    checkpoint = replace(read_checkpoint(save_run(tmp_path / "run")), state=None)
    decoder = build_model(small_config(), torch.device("cpu")).decoder
    assert load_by_class(decoder, checkpoint, list("wxyz")) == ""
    smaller = build_model(small_config(names=NOW), torch.device("cpu")).decoder
    assert load_by_class(smaller, checkpoint, NOW).endswith("all is kept but the classifier; it is new")


def test_a_head_that_differs_in_more_is_refused(tmp_path):
    checkpoint = read_checkpoint(save_run(tmp_path / "run", "m2f"))
    config = small_config("m2f", NOW)
    config.decoder_head.num_queries = 20
    decoder = build_model(config, torch.device("cpu")).decoder
    with pytest.raises(CheckpointError, match=r"is of another model: .* of another shape"):
        load_by_class(decoder, checkpoint, NOW)


def test_names_that_stand_twice_are_nobodys():
    assert shared_classes(["a", "b", "b"], ["b", "a", "c"]) == [(0, 1)]
    assert shared_classes([], ["a"]) == []


def test_rows_by_class_leaves_its_inputs_alone():
    fresh, trained = torch.zeros(3, 2), torch.arange(8.0).view(4, 2)
    found = rows_by_class(fresh, trained, [(2, 0)], 2)
    assert found.tolist() == [[4, 5], [0, 0], [6, 7]]
    assert not fresh.any()
