import math

import numpy as np
import pytest
import torch

from maskshards.train.evaluation.boundary_iou import BoundaryCounts, boundary, boundary_px


def _eroded(mask, times):
    """`times` erosions by a 3x3 square with nothing outside the image: the paper's construction, by loops."""
    for _ in range(times):
        padded = np.pad(mask, 1)
        mask = np.logical_and.reduce(
            [padded[y : y + mask.shape[0], x : x + mask.shape[1]] for y in range(3) for x in range(3)]
        )
    return mask


def _map(seed, height, width, classes=4):
    """Blobs: a coarse random map blown up."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, classes, size=(5, 6))
    rows, columns = np.arange(height) * 5 // height, np.arange(width) * 6 // width
    return coarse[rows][:, columns]


@pytest.mark.parametrize("reach", [1, 2, 4])
def test_boundary_is_the_mask_without_its_erosion_for_every_class(reach):
    label_map = _map(0, 41, 57)
    near = boundary(torch.from_numpy(label_map), reach).numpy()
    for k in range(4):
        mask = label_map == k
        assert np.array_equal(near & mask, mask & ~_eroded(mask, reach))


def test_a_small_image_is_all_boundary():
    assert boundary(torch.zeros(5, 40, dtype=torch.int64), 3).all()


def test_width_is_two_percent_of_the_diagonal():
    assert boundary_px(300, 400) == 10
    assert boundary_px(3, 4) == 1


def test_scores_equal_the_papers_definition_class_by_class():
    counts = BoundaryCounts(5, "cpu", ignored=255)
    right, union = np.zeros(5), np.zeros(5)
    for seed in range(3):
        label, prediction = _map(seed, 120, 160), _map(seed + 10, 120, 160)
        prediction = np.where(np.arange(160) < 90, np.roll(label, 2, axis=0), prediction)
        label[30:50, 20:70] = 255
        counts.update(torch.from_numpy(prediction), torch.from_numpy(label))
        shown = np.where(label == 255, 255, prediction)
        for k in range(5):
            truth, found = label == k, shown == k
            truth, found = truth & ~_eroded(truth, 4), found & ~_eroded(found, 4)
            right[k] += (truth & found).sum()
            union[k] += (truth | found).sum()
    assert boundary_px(120, 160) == 4
    result = counts.iou_per_class()
    assert result[:4] == pytest.approx(100 * right[:4] / union[:4])
    assert 10 < result[:4].mean() < 90
    assert math.isnan(result[4])


def test_a_ragged_outline_costs_more_than_its_share_of_pixels():
    label = np.zeros((200, 200), np.int64)
    label[50:150, 50:150] = 1
    ragged = label.copy()
    ragged[50:150, 50:55] = 0
    scores = []
    for prediction in (label, ragged):
        counts = BoundaryCounts(2, "cpu", ignored=255)
        counts.update(torch.from_numpy(prediction), torch.from_numpy(label))
        scores.append(counts.iou_per_class()[1])
    assert scores[0] == 100
    assert scores[1] < 80


@pytest.mark.gpu
def test_counts_are_the_same_on_the_device():
    label, prediction = torch.from_numpy(_map(1, 90, 70)), torch.from_numpy(_map(2, 90, 70))
    results = []
    for device in ("cpu", "cuda"):
        counts = BoundaryCounts(4, device, ignored=255)
        counts.update(prediction.to(device), label.to(device))
        results.append(counts.iou_per_class())
    assert np.array_equal(*results)
