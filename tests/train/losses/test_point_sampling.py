"""The random points: reproducible bits, uniform and unrelated numbers, and the choice of uncertain ones."""

import numpy as np
import pytest
import torch

from maskshards.train.losses.point_sampling import (
    MATCH,
    ROWS,
    absorb,
    mix,
    nearest_zero,
    point_keys,
    random_points,
    row_offsets,
    sample_maps,
    sample_products,
    shifted,
)
from tests.train.losses.test_gather_matched import Largest


def scalar_mix(word: int) -> int:
    """The same hash with Python's unbounded integers."""
    word ^= word >> 16
    word = word * 0x21F0AAAD % 2**32
    word ^= word >> 15
    word = word * 0x735A2D97 % 2**32
    return word ^ word >> 15


def test_mix_equals_its_definition_on_unbounded_integers() -> None:
    words = [0, 1, 2**31, 2**32 - 1, 123456789]
    expected = [scalar_mix(word) for word in words]
    assert mix(torch.tensor(words)).tolist() == expected
    assert mix(np.array(words)).tolist() == expected


def test_keys_do_not_depend_on_the_batch_but_on_every_word() -> None:
    whole = point_keys(7, [100, 101, 102, 103], 3, MATCH)
    assert (point_keys(7, [102], 3, MATCH)[:, 0] == whole[:, 2]).all()
    assert (point_keys(7, [103, 100], 1, MATCH)[0, 0] == whole[0, 3]).all()
    others = [
        point_keys(8, [100], 1, MATCH),
        point_keys(7 + 2**32, [100], 1, MATCH),
        point_keys(7, [100 + 2**32], 1, MATCH),
        point_keys(7, [100], 1, ROWS),
    ]
    keys = {tuple(key) for key in whole.reshape(-1, 2).tolist()} | {
        tuple(k.flatten().tolist()) for k in others
    }
    assert len(keys) == 12 + 4


def test_points_are_uniform_and_unrelated() -> None:
    count = 40_000
    keys = torch.from_numpy(point_keys(0, [5, 6], 2, ROWS))
    points = random_points(keys, count).double()
    assert points.shape == (2, 2, count, 2)
    assert float(points.min()) >= 0
    assert float(points.max()) < 1
    cells = (points[..., 0] * 16).long() * 16 + (points[..., 1] * 16).long()
    for sets in cells.flatten(0, 1):
        seen = torch.bincount(sets, minlength=256).double()
        chi_square = ((seen - count / 256) ** 2 / (count / 256)).sum()
        assert 150 < float(chi_square) < 380  # 255 degrees of freedom: mean 255, deviation 22.6
    columns = torch.stack(
        [
            points[0, 0, :-1, 0],
            points[0, 0, :-1, 1],
            points[0, 0, 1:, 0],
            points[0, 1, 1:, 0],
            points[1, 0, 1:, 1],
        ]
    )
    relation = torch.corrcoef(columns) - torch.eye(5)
    assert float(relation.abs().max()) < 5 / count**0.5


def test_a_shifted_row_stays_uniform_and_differs_by_class() -> None:
    keys = torch.from_numpy(point_keys(0, [5], 1, ROWS))
    drawn = random_points(keys, 20_000).expand(3, -1, -1, -1)[:, 0]
    offsets = row_offsets(keys[0].expand(3, 2), torch.tensor([0, 1, 149]))
    assert len({tuple(row) for row in offsets.tolist()}) == 3
    points = shifted(drawn, offsets).double()
    assert float(points.min()) >= 0
    assert float(points.max()) < 1
    assert torch.allclose(points.mean(1), torch.tensor(0.5, dtype=torch.float64), atol=0.01)
    assert torch.allclose(points.var(1), torch.tensor(1 / 12, dtype=torch.float64), atol=0.003)


def test_shifted_points_wrap_and_never_reach_one() -> None:
    high = 1 - 2.0**-24
    points = torch.tensor([[[0.0, high], [0.5, 2.0**-24]]])
    moved = shifted(points, torch.tensor([[high, high]]))
    assert moved[0].tolist() == [[high, 1 - 2.0**-23], [0.5, 0.0]]


def test_absorb_spreads_a_changed_bit_over_the_word() -> None:
    state = torch.arange(4096)
    flipped = absorb(state, torch.tensor(5)) ^ absorb(state, torch.tensor(5 ^ 1))
    bits = ((flipped[:, None] >> torch.arange(32)) & 1).double().mean(0)
    assert float((bits - 0.5).abs().max()) < 0.05


def test_sample_maps_reads_pixel_centres_and_zeros_outside() -> None:
    maps = torch.arange(6.0).view(1, 1, 2, 3)
    centre = torch.tensor([[[0.5 / 3, 0.25], [2.5 / 3, 0.75], [0.0, 0.25]]])
    assert torch.allclose(sample_maps(maps + 1, centre)[0, 0], torch.tensor([1.0, 6.0, 0.5]), atol=1e-6)


EDGES = torch.tensor([0.0, 2.0**-24, 0.5 / 7, 0.5, 1 - 0.5 / 7, 1 - 2.0**-24])


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_products_at_points_are_samples_of_the_maps_multiplied_out(layout: torch.memory_format) -> None:
    """Layer by layer, points at all edges among them, in float64."""
    vectors, features = torch.randn(2, 3, 4, 5).double(), torch.randn(2, 5, 6, 7).double()
    points = torch.cat((torch.rand(3, 2, 40, 2), torch.cartesian_prod(EDGES, EDGES).expand(3, 2, -1, 2)), 2)
    masks = torch.einsum("blqc,bchw->blqhw", vectors, features).unbind(1)
    found = list(sample_products(vectors, features.to(memory_format=layout), points))
    assert len(found) == 3
    for layer, logits in enumerate(found):
        expected = sample_maps(masks[layer], points[layer].double())
        torch.testing.assert_close(logits, expected, rtol=1e-12, atol=1e-12)


def test_samples_of_one_image_and_layer_are_held_at_a_time() -> None:
    """64 channels at 1,000 points; neither ten layers of them nor a mask of every query."""
    vectors, features = torch.randn(2, 10, 50, 64), torch.randn(2, 64, 4, 4)
    points = torch.rand(10, 2, 1000, 2)
    with Largest() as largest:
        shapes = [tuple(logits.shape) for logits in sample_products(vectors, features, points)]
    assert shapes == [(2, 50, 1000)] * 10
    assert largest.numbers == 2 * 50 * 1000  # the logits themselves


def test_nearest_zero_keeps_the_least_certain() -> None:
    logits = torch.tensor([[3.0, -0.5, 0.1, -2.0], [-9.0, 8.0, 7.0, -6.0]])
    points = torch.arange(16.0).view(2, 4, 2)
    kept = nearest_zero(logits, points, 2)
    assert sorted(kept[0].tolist()) == [[2, 3], [4, 5]]
    assert sorted(kept[1].tolist()) == [[12, 13], [14, 15]]
