"""Label-map sampling against grid_sample of the one-hot masks that it replaces."""

import torch
import torch.nn.functional as F

from maskshards.shards.batch import VOID
from maskshards.train.losses.point_targets import labels_present, padded, targets_of_images, targets_of_rows


def random_maps(batch: int = 3, height: int = 9, width: int = 14, labels: int = 5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    drawn = torch.randint(0, labels + 1, (batch, height, width), generator=generator)
    return torch.where(drawn == labels, VOID, drawn).to(torch.int16)


def border_points(batch: int, count: int = 400) -> torch.Tensor:
    points = torch.rand(batch, count, 2, generator=torch.Generator().manual_seed(4))
    points[:, :4] = torch.tensor([[0.0, 0.0], [1 - 2**-24, 1 - 2**-24], [0.0, 0.999], [0.5, 0.0]])
    return points


def one_hot_samples(owner_map: torch.Tensor, labels: list[int], points: torch.Tensor) -> torch.Tensor:
    masks = torch.stack([owner_map == label for label in labels], 1).float()
    sampled = F.grid_sample(masks, (2 * points - 1)[:, None], align_corners=False)
    return sampled[:, :, 0]


def test_image_targets_equal_grid_sample_of_one_hot_masks() -> None:
    owner_map, points = random_maps(), border_points(3)
    value, void = targets_of_images(padded(owner_map), 5, points)
    expected = one_hot_samples(owner_map, [0, 1, 2, 3, 4], points)
    assert torch.allclose(value, expected, atol=1e-6)
    assert torch.allclose(void, one_hot_samples(owner_map, [VOID], points)[:, 0], atol=1e-6)
    assert float(void.min()) < 0.1 < 0.9 < float(void.max())


def test_row_targets_equal_grid_sample_of_one_hot_masks() -> None:
    owner_map = random_maps()
    images, wanted = torch.tensor([2, 0, 0, 1]), torch.tensor([4, 0, 3, 1])
    points = border_points(4)
    value = targets_of_rows(padded(owner_map), images, wanted, points)
    void = targets_of_rows(padded(owner_map), images, torch.full((4,), VOID), points)
    for row in range(4):
        image = owner_map[images[row]][None]
        for ours, label in ((value[row], int(wanted[row])), (void[row], VOID)):
            assert torch.allclose(
                ours, one_hot_samples(image, [label], points[row : row + 1])[0, 0], atol=1e-6
            )


def test_label_254_is_neither_void_nor_outside() -> None:
    owner_map = torch.full((1, 3, 3), 254, dtype=torch.int16)
    points = torch.tensor([[[0.5, 0.5], [0.0, 0.5]]])
    images = torch.zeros(1, dtype=torch.int64)
    assert targets_of_rows(padded(owner_map), images, torch.tensor([254]), points).tolist() == [[1.0, 0.5]]
    assert targets_of_rows(padded(owner_map), images, torch.tensor([VOID]), points).tolist() == [[0.0, 0.0]]


def test_no_rows_give_no_targets() -> None:
    none = torch.zeros(0, dtype=torch.int64)
    assert targets_of_rows(padded(random_maps()), none, none, torch.zeros(0, 7, 2)).shape == (0, 7)


def test_presence_is_a_pixel_count_above_zero() -> None:
    owner_map = torch.full((3, 4, 4), VOID, dtype=torch.int16)
    owner_map[0, 1, 2] = 2
    owner_map[1] = 0
    assert labels_present(owner_map, 3).tolist() == [[False, False, True], [True, False, False], [False] * 3]
    assert labels_present(owner_map.fill_(254), 255)[0].nonzero().tolist() == [[254]]
