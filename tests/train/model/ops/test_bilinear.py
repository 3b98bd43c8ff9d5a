"""The two pixels around a place: against torch's own bilinear sampling of a map with one row."""

import pytest
import torch
import torch.nn.functional as F

from maskshards.train.model.ops.bilinear import neighbours


@pytest.mark.parametrize("dim", [-1, -3])
def test_shares_of_the_two_pixels_are_those_of_grid_sample(dim: int) -> None:
    generator = torch.Generator().manual_seed(0)
    row = torch.randn(7, dtype=torch.float64, generator=generator)
    pixels = torch.rand(4, 5, 6, dtype=torch.float64, generator=generator) * 11 - 2
    pixels.view(-1)[:4] = torch.tensor([0.0, 6.0, -1.0, 2.5])
    near = neighbours(pixels.unsqueeze(dim), 6, dim)
    assert near.place.dtype == torch.int32
    assert near.place.is_contiguous()
    assert near.share.is_contiguous()
    sampled = (row[near.place] * near.share).sum(dim)
    grid = torch.stack(((pixels.flatten() + 0.5) / 7 * 2 - 1, torch.zeros(120)), -1)
    expected = F.grid_sample(row.view(1, 1, 1, 7), grid.view(1, 1, -1, 2), align_corners=False)
    torch.testing.assert_close(sampled.flatten(), expected.flatten(), rtol=0, atol=1e-12)


def test_each_place_has_a_last_pixel_of_its_own_and_what_is_no_number_has_pixel_0() -> None:
    pixels = torch.tensor([[3.25], [3.25], [float("nan")]])
    near = neighbours(pixels, torch.tensor([[2.0], [3.0], [3.0]]), dim=-1)
    assert near.place.tolist() == [[2, 2], [3, 3], [0, 0]]
    assert near.inside.tolist() == [[0, 0], [1, 0], [0, 0]]
    assert near.share[:2].tolist() == [[0, 0], [0.75, 0]]
