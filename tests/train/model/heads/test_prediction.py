"""The door between model and loss is frozen."""

import dataclasses

import pytest
import torch

from maskshards.train.model.heads.prediction import MaskProduct, Prediction


def test_a_prediction_cannot_be_changed() -> None:
    prediction = Prediction(torch.zeros(1, 2, 3), torch.zeros(1, 2, 4, 4))
    with pytest.raises(dataclasses.FrozenInstanceError):
        prediction.class_logits = torch.ones(1)  # type: ignore[misc]


def test_masks_that_were_left_out_are_multiplied_out_when_asked_for() -> None:
    vectors, features = torch.randn(2, 3, 4, 5), torch.randn(2, 5, 6, 7)
    masks = torch.einsum("blqc,bchw->blqhw", vectors, features)
    for layer in range(3):
        left_out = Prediction(torch.zeros(2, 4, 3), None, MaskProduct(vectors, features), layer)
        torch.testing.assert_close(left_out.mask_logits, masks[:, layer])
        assert left_out.source is features
        assert Prediction(torch.zeros(2, 4, 3), masks[:, layer]).source is not features


def test_a_prediction_of_nothing_says_so() -> None:
    with pytest.raises(ValueError, match="without masks and without"):
        _ = Prediction(torch.zeros(1, 2, 3), None).mask_logits
