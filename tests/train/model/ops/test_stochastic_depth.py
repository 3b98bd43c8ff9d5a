"""Drop numbers hang on seed, position and purpose alone."""

import pytest
import torch

from maskshards.train.model.ops.stochastic_depth import draw_keep_factors


def test_a_row_depends_on_its_own_position_only() -> None:
    whole = draw_keep_factors([5, 9, 2], 7, "x", 64, 0.5)
    assert torch.equal(whole[1], draw_keep_factors([9], 7, "x", 64, 0.5)[0])


@pytest.mark.parametrize("other", [([3], 8, "x"), ([4], 7, "x"), ([3], 7, "y"), ([7], 3, "x")])
def test_seed_position_and_purpose_each_change_the_numbers(other: tuple[list[int], int, str]) -> None:
    assert not torch.equal(draw_keep_factors([3], 7, "x", 64, 0.5), draw_keep_factors(*other, 64, 0.5))


def test_factors_are_zero_or_the_inverse_of_the_keep_rate_and_average_one() -> None:
    factors = draw_keep_factors(range(500), 0, "x", 20, 0.3)
    assert factors.dtype is torch.float32
    assert set(factors.unique().tolist()) == {0.0, torch.tensor(1 / 0.7).item()}
    assert abs(factors.mean().item() - 1) < 0.02  # 10,000 draws: the standard error is 0.0065


def test_no_positions_give_no_rows() -> None:
    assert draw_keep_factors([], 0, "x", 3, 0.3).shape == (0, 3)
