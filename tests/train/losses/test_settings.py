"""How many points a row is compared at, by hand."""

import pytest

from maskshards.train.losses.settings import LossSettings


def test_the_published_counts() -> None:
    assert LossSettings().point_counts == (37632, 9408, 3136)


@pytest.mark.parametrize("ratio", [0.0, 0.33, 1.0])
def test_kept_and_fresh_points_make_a_full_row(ratio: float) -> None:
    candidates, kept, fresh = LossSettings(num_points=50, importance_sample_ratio=ratio).point_counts
    assert (candidates, kept + fresh) == (150, 50)
    assert kept == int(50 * ratio)
