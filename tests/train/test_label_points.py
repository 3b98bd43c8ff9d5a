"""Label-map sampling against grid_sample of the one-hot masks that it replaces."""

import torch
import torch.nn.functional as F

from shards.batch import VOID
from train.label_points import labels_present, targets_of_images, targets_of_rows


def random_maps(batch: int = 3, height: int = 9, width: int = 14, labels: int = 5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    drawn = torch.randint(0, labels + 1, (batch, height, width), generator=generator)
    return torch.where(drawn == labels, VOID, drawn).to(torch.uint8)


def border_points(batch: int, count: int = 400) -> torch.Tensor:
    points = torch.rand(batch, count, 2, generator=torch.Generator().manual_seed(4))
    points[:, :4] = torch.tensor([[0.0, 0.0], [1 - 2**-24, 1 - 2**-24], [0.0, 0.999], [0.5, 0.0]])
    return points


def one_hot_samples(label_map: torch.Tensor, labels: list[int], points: torch.Tensor) -> torch.Tensor:
    masks = torch.stack([label_map == label for label in labels], 1).float()
    sampled = F.grid_sample(masks, (2 * points - 1)[:, None], align_corners=False)
    return sampled[:, :, 0]


def test_image_targets_equal_grid_sample_of_one_hot_masks() -> None:
    label_map, points = random_maps(), border_points(3)
    value, weight = targets_of_images(label_map, 5, points)
    expected = one_hot_samples(label_map, [0, 1, 2, 3, 4], points)
    assert torch.allclose(value, expected, atol=1e-6)
    void = one_hot_samples(label_map, [VOID], points)[:, 0]
    assert torch.allclose(weight, 1 - void, atol=1e-6)
    assert float(weight.min()) < 0.1 < 0.9 < float(weight.max())


def test_row_targets_equal_grid_sample_of_one_hot_masks() -> None:
    label_map = random_maps()
    images, wanted = torch.tensor([2, 0, 0, 1]), torch.tensor([4, 0, 3, 1])
    points = border_points(4)
    value, weight = targets_of_rows(label_map, images, wanted, points)
    for row in range(4):
        image = label_map[images[row]][None]
        assert torch.allclose(
            value[row], one_hot_samples(image, [int(wanted[row])], points[row : row + 1])[0, 0], atol=1e-6
        )
        assert torch.allclose(
            weight[row], 1 - one_hot_samples(image, [VOID], points[row : row + 1])[0, 0], atol=1e-6
        )


def test_no_rows_give_no_targets() -> None:
    none = torch.zeros(0, dtype=torch.int64)
    value, weight = targets_of_rows(random_maps(), none, none, torch.zeros(0, 7, 2))
    assert value.shape == weight.shape == (0, 7)


def test_presence_is_a_pixel_count_above_zero() -> None:
    label_map = torch.full((3, 4, 4), VOID, dtype=torch.uint8)
    label_map[0, 1, 2] = 2
    label_map[1] = 0
    assert labels_present(label_map, 3).tolist() == [[False, False, True], [True, False, False], [False] * 3]
    assert labels_present(label_map.fill_(254), 255)[0].nonzero().tolist() == [[254]]
