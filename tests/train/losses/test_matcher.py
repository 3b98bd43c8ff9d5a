"""Costs against transformers' pairwise functions, assignments against trying every permutation."""

import itertools

import numpy as np
import torch
from transformers.models.mask2former.modeling_mask2former import (
    pair_wise_dice_loss,
    pair_wise_sigmoid_cross_entropy_loss,
    sample_point,
)

from maskshards.train.losses.matcher import Assigner, CostWeights, matching_costs
from maskshards.train.losses.point_sampling import MATCH, ROWS, point_keys, random_points
from maskshards.train.losses.point_sums import PlainSampler
from maskshards.train.losses.settings import LossSettings
from maskshards.train.model.heads.prediction import Prediction


def test_costs_equal_the_reference_for_every_layer_and_image() -> None:
    generator = torch.Generator().manual_seed(0)
    predictions = [
        Prediction(
            torch.randn(2, 4, 6, generator=generator), 4 * torch.randn(2, 4, 5, 7, generator=generator)
        )
        for _ in range(3)
    ]
    owner_map = torch.randint(0, 3, (2, 20, 28), generator=generator).to(torch.int16)
    labels = torch.tensor([[0, 3, 4], [1, 2, -1]])
    keys = torch.stack([torch.from_numpy(point_keys(1, [8, 9], 3, use)) for use in (MATCH, ROWS)])
    drawn = random_points(keys[0], 60)
    sums = PlainSampler(owner_map, 3, keys, LossSettings(num_points=60)).pair_sums(predictions)
    costs = matching_costs(predictions, labels, sums, CostWeights(5.0, 4.0, 2.0))
    assert costs.shape == (3, 2, 4, 3)
    for layer, image in itertools.product(range(3), range(2)):
        points = drawn[layer, image][None]
        logits = predictions[layer].mask_logits[image][:, None]
        masks = torch.stack([owner_map[image] == k for k in range(3)])[:, None].float()
        logit = sample_point(logits, points.expand(4, -1, -1), align_corners=False).squeeze(1)
        mask = sample_point(masks, points.expand(3, -1, -1), align_corners=False).squeeze(1)
        expected = 5 * pair_wise_sigmoid_cross_entropy_loss(logit, mask) + 4 * pair_wise_dice_loss(
            logit, mask
        )
        probability = predictions[layer].class_logits[image].softmax(-1)
        known = labels[image] >= 0
        expected = expected[:, known] - 2 * probability[:, labels[image, known]]
        assert torch.allclose(costs[layer, image][:, known], expected, rtol=1e-5, atol=1e-5)


def cheapest(costs: np.ndarray) -> float:
    """The least total of all injective assignments of the shorter side."""
    table = costs if costs.shape[0] >= costs.shape[1] else costs.T
    return min(
        sum(table[row, column] for column, row in enumerate(rows))
        for rows in itertools.permutations(range(table.shape[0]), table.shape[1])
    )


def test_matches_are_the_cheapest_and_sorted() -> None:
    costs = np.random.default_rng(0).standard_normal((2, 3, 4, 5)).astype(np.float32)
    present = np.array([[1, 0, 1, 1, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]], dtype=bool)
    rows = Assigner(threads=2)(costs, present)
    assert rows.dtype == np.int64
    assert rows.shape == (4, 2 * (3 + 0 + 4))
    assert (np.lexsort(rows[2::-1]) == np.arange(rows.shape[1])).all()
    for layer, image in itertools.product(range(2), (0, 2)):
        mine = rows[:, (rows[0] == layer) & (rows[1] == image)]
        assert len(set(mine[2])) == len(set(mine[3])) == mine.shape[1]
        assert present[image, mine[3]].all()
        total = costs[layer, image, mine[2], mine[3]].sum()
        assert np.isclose(total, cheapest(costs[layer, image][:, present[image]]), rtol=1e-5)


def test_any_number_of_threads_gives_the_same_rows() -> None:
    costs = np.random.default_rng(1).standard_normal((3, 4, 6, 3)).astype(np.float32)
    present = np.ones((4, 3), dtype=bool)
    assert (Assigner(1)(costs, present) == Assigner(7)(costs, present)).all()


def test_nothing_present_matches_nothing() -> None:
    assert Assigner()(np.zeros((2, 2, 3, 4), dtype=np.float32), np.zeros((2, 4), dtype=bool)).shape == (4, 0)
