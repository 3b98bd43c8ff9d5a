"""Sine positions against a loop over the formula and against transformers."""

import math

import pytest
import torch
from transformers.models.mask2former.modeling_mask2former import Mask2FormerSinePositionEmbedding

from maskshards.train.model.ops.sine_position import sine_position


def test_equals_the_formula_channel_by_channel() -> None:
    height, columns, width = 3, 5, 16
    found = sine_position((height, columns), width, torch.device("cpu"), torch.float64)
    for row in range(height):
        for column in range(columns):
            for axis, (place, size) in enumerate(((row, height), (column, columns))):
                scaled = (place + 1) / (size + 1e-6) * 2 * math.pi
                for i in range(width // 2):
                    angle = scaled / 10000 ** (2 * (i // 2) / (width // 2))
                    expected = math.sin(angle) if i % 2 == 0 else math.cos(angle)
                    value = found[row * columns + column, axis * width // 2 + i].item()
                    assert value == pytest.approx(expected, abs=1e-12)


def test_equals_transformers() -> None:
    theirs = Mask2FormerSinePositionEmbedding(num_position_features=32, normalize=True)
    expected = theirs(torch.Size((1, 64, 4, 6)), torch.device("cpu"), torch.float32)
    if expected.dim() == 4:
        expected = expected.flatten(2).transpose(1, 2)
    found = sine_position((4, 6), 64, torch.device("cpu"))
    torch.testing.assert_close(found, expected[0], rtol=1e-5, atol=1e-5)
