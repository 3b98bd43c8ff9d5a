import math

import numpy as np
import pytest
import torch

from maskshards.train.evaluation.accumulator import Tally
from maskshards.train.evaluation.boundary_iou import BoundaryCounts
from maskshards.train.evaluation.metrics import ConfusionMatrix

NAMES = ["a", "b", "c"]


def _pairs(count=5):
    rng = np.random.default_rng(0)
    for _ in range(count):
        label = torch.from_numpy(rng.integers(0, 3, size=(30, 40)))
        prediction = torch.where(
            torch.rand(30, 40, generator=torch.Generator().manual_seed(1)) < 0.6, label, 1
        )
        label[:3] = 255
        yield prediction, label


def test_parts_equal_their_own_counters():
    tally, matrix = Tally(3, 5, "cpu", 255, boundary=True, per_image=True), ConfusionMatrix(3)
    outline = BoundaryCounts(3, "cpu", 255)
    for number, (prediction, label) in enumerate(_pairs()):
        assert torch.equal(tally.update(number, prediction, label), matrix.update(prediction, label))
        outline.update(prediction, label)
    result = tally.result(NAMES, "vwxyz")
    assert result.miou == matrix.result(NAMES).miou
    assert result.boundary_iou_per_class == tuple(outline.iou_per_class())
    assert result.boundary_miou == pytest.approx(np.mean(outline.iou_per_class()))
    assert [one.key for one in result.images] == list("vwxyz")
    for one, (prediction, label) in zip(result.images, _pairs(), strict=True):
        alone = ConfusionMatrix(3)
        alone.update(prediction, label)
        assert (one.miou, one.pixel_accuracy) == (
            alone.result(NAMES).miou,
            alone.result(NAMES).pixel_accuracy,
        )


def test_ranks_fill_different_rows_and_one_reduction_brings_all_together():
    whole = Tally(3, 5, "cpu", 255, boundary=True, per_image=True)
    ranks = [Tally(3, 5, "cpu", 255, boundary=True, per_image=True) for _ in range(2)]
    for number, pair in enumerate(_pairs()):
        whole.update(number, *pair)
        ranks[number % 2].update(number, *pair)
    sent = []
    for rank in ranks:
        rank.reduce(lambda flat: sent.append(flat.clone()))
    assert [flat.dtype for flat in sent] == [torch.int64] * 2
    ranks[0].reduce(lambda flat: flat.copy_(sent[0] + sent[1]))
    assert ranks[0].result(NAMES, "vwxyz") == whole.result(NAMES, "vwxyz")
    assert ranks[0].result(NAMES, "vwxyz").images == whole.result(NAMES, "vwxyz").images


def test_an_image_without_labels_has_no_score_of_its_own():
    tally = Tally(3, 1, "cpu", 255, per_image=True)
    tally.update(0, torch.zeros(4, 4, dtype=torch.int64), torch.full((4, 4), 255))
    (one,) = tally.result(NAMES, ["k"]).images
    assert math.isnan(one.miou)
    assert math.isnan(one.pixel_accuracy)


def test_what_was_not_asked_for_is_not_there():
    result = Tally(3, 5, "cpu", 255).result(NAMES, [])
    assert result.boundary_miou is None
    assert result.boundary_iou_per_class == ()
    assert result.images == ()
