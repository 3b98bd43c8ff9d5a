import pytest
import torch
from torch import nn

from maskshards.train.optim.ema import Ema


def test_average_follows_the_formula_with_its_early_warm_up() -> None:
    layer = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(layer.weight)
    average, expected = Ema(layer, 0.9), 0.0
    for step in range(1, 200):
        nn.init.constant_(layer.weight, float(step))
        average.update(step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    assert float(average.shadow["weight"]) == pytest.approx(expected, rel=1e-5)


def test_swapped_inside_live_outside() -> None:
    layer = nn.Linear(2, 2)
    average = Ema(layer, 0.5)
    kept = layer.weight.detach().clone()
    nn.init.ones_(layer.weight)
    with average.swapped():
        assert torch.equal(layer.weight, kept)
    assert torch.equal(layer.weight, torch.ones(2, 2))
    assert torch.equal(average.shadow["weight"], kept)


def test_frozen_parameters_have_no_average() -> None:
    layer = nn.Linear(2, 2)
    layer.bias.requires_grad_(False)
    assert set(Ema(layer, 0.5).shadow) == {"weight"}


def test_saved_averages_come_back_and_must_fit() -> None:
    layer = nn.Linear(2, 2)
    average = Ema(layer, 0.5)
    average.load({"weight": torch.full((2, 2), 3.0), "bias": torch.zeros(2)})
    assert torch.equal(average.shadow["weight"], torch.full((2, 2), 3.0))
    average.restart()
    assert torch.equal(average.shadow["weight"], layer.weight)
    with pytest.raises(ValueError, match="bias"):
        average.load({"weight": torch.zeros(2, 2)})
