"""The door between model and loss is frozen."""

import dataclasses

import pytest
import torch

from maskshards.train.model.heads.prediction import Prediction


def test_a_prediction_cannot_be_changed() -> None:
    prediction = Prediction(torch.zeros(1, 2, 3), torch.zeros(1, 2, 4, 4))
    with pytest.raises(dataclasses.FrozenInstanceError):
        prediction.class_logits = torch.ones(1)  # type: ignore[misc]
