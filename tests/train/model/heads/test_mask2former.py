from collections.abc import Sequence

import numpy as np
import pytest
import torch

from maskshards.shards.batch import CropBatch
from maskshards.train.losses.matched_loss import MatchedLoss
from maskshards.train.losses.nonfinite import NonFiniteError
from maskshards.train.losses.settings import LossSettings
from maskshards.train.model.heads.mask2former import MaskLoss, poisoned, semantic_scores
from maskshards.train.model.heads.prediction import MaskProduct, Prediction

CLASSES = 2


def crops() -> CropBatch:
    owner_map = torch.zeros(1, 16, 16, dtype=torch.uint8)
    return CropBatch(torch.zeros(1, 3, 16, 16), owner_map, torch.tensor([[1]]), ("a",), (0,))


def predictions(value: float = 0.5) -> list[Prediction]:
    return [
        Prediction(
            torch.full((1, 3, CLASSES + 1), value, requires_grad=True),
            torch.full((1, 3, 4, 4), value, requires_grad=True),
        )
        for _ in range(2)
    ]


def test_scores_are_class_shares_times_mask_shares() -> None:
    logits, masks = np.array([[0.3, -1.0, 2.0]]), np.array([[[0.7]]])
    shares = np.exp(logits) / np.exp(logits).sum()
    prediction = Prediction(torch.tensor(logits[None]), torch.tensor(masks[None]))
    found = semantic_scores(prediction, (1, 1))
    assert found.flatten().tolist() == pytest.approx((shares[0, :2] / (1 + np.exp(-0.7))).tolist())


def test_a_poisoned_loss_reaches_every_prediction() -> None:
    logits = [torch.ones(2, 3, requires_grad=True) for _ in range(4)]
    total = poisoned([Prediction(logits[0], logits[1]), Prediction(logits[2], logits[3])])
    total.backward()
    assert all(value.grad is not None and value.grad.isnan().all() for value in logits)


def test_a_poisoned_loss_reaches_what_masks_that_were_left_out_are_made_of() -> None:
    vectors, features = torch.ones(1, 2, 3, 4, requires_grad=True), torch.ones(1, 4, 5, 5, requires_grad=True)
    classes, product = torch.ones(1, 3, 2, requires_grad=True), MaskProduct(vectors, features)
    poisoned([Prediction(classes, None, product, layer) for layer in range(2)]).backward()
    for leaf in (vectors, features, classes):
        assert leaf.grad is not None
        assert leaf.grad.isnan().all()


def test_what_cannot_be_matched_answers_nan_and_meets_the_other_ranks_all_the_same() -> None:
    loss, met = MaskLoss(MatchedLoss(LossSettings(num_points=20), CLASSES)), []

    def reduce(values: torch.Tensor) -> torch.Tensor:
        met.append(values)
        return values

    answer: Sequence[Prediction] = predictions(float("nan"))
    found = loss(list(answer), crops(), seed=0, reduce=reduce)
    assert found.total.isnan()
    assert [values.tolist() for values in met] == [[0.0, 0.0, 0.0]]
    with pytest.raises(NonFiniteError):
        loss.alone(list(answer), crops(), seed=0)


def test_a_flag_comes_back_as_a_number() -> None:
    loss = MaskLoss(MatchedLoss(LossSettings(num_points=20), CLASSES))
    found = loss(predictions(), crops(), seed=0, reduce=None, flag=torch.tensor([0.25]))
    assert found.flag_on_host == 0.25
    assert found.total.item() == pytest.approx(loss.alone(predictions(), crops(), seed=0).item())
