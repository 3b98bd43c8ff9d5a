"""Which query answers for which mask: costs on the device, one copy, assignment in host threads.

The costs are Mask2Former's (Cheng et al. 2022, arXiv 2112.01527, section 3.3): class probability, mean
binary cross entropy and dice at random points shared by the queries and masks of an image. With
softplus(-p) = softplus(p) - p the cross entropy of all pairs is one matrix product, sum softplus(p) -
p.t, where transformers needs two.

Letters: L layer, B image, Q query, K label index of an image, P point.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from maskshards.train.losses.point_sums import PairSums, dice_loss
from maskshards.train.model.heads.prediction import Prediction


@dataclass(frozen=True, slots=True)
class CostWeights:
    """What each term of the matching cost counts."""

    mask: float
    dice: float
    classify: float


def matching_costs(
    predictions: Sequence[Prediction], labels: Tensor, sums: PairSums, weights: CostWeights
) -> Tensor:
    """(L, B, Q, K) float32 on the device; without meaning in columns of labels that an image lacks.

    labels (B, K) int64 class ids, -1 where an image has fewer; `sums` over each image's points.
    """
    probability = torch.stack([p.class_logits.detach() for p in predictions]).float().softmax(-1)
    index = labels.clamp(min=0)[None, :, None].expand(*probability.shape[:3], -1)
    entropy = sums.softplus[..., None] - sums.with_logit
    area = sums.sigmoid[..., None] + sums.target[:, :, None]
    cost = weights.mask * entropy / sums.counted.clamp(min=1.0)[..., None, None]
    cost = cost + weights.dice * dice_loss(sums.with_sigmoid, area)
    return cost - weights.classify * probability.gather(3, index)


class Assigner:
    """Solves the L * B small assignment problems of a step; other threads run meanwhile."""

    def __init__(self, threads: int = 4) -> None:
        self._threads = threads
        self._pool: ThreadPoolExecutor | None = None

    def __call__(self, costs: np.ndarray, present: np.ndarray) -> np.ndarray:
        """(4, R) int64, columns (layer, image, query, label index) in that order of sorting.

        costs (L, B, Q, K) float32, finite; present (B, K) bool: the labels to match. Each layer and
        image gives min(Q, number present) columns: with more masks than queries the cheapest set of
        masks is matched.
        """
        num_layers, num_images = costs.shape[:2]
        wanted = [np.flatnonzero(row) for row in present]
        problems = [
            (layer, image) for layer in range(num_layers) for image in range(num_images) if len(wanted[image])
        ]
        if not problems:
            return np.zeros((4, 0), dtype=np.int64)

        def solve(some: Sequence[tuple[int, int]]) -> list[np.ndarray]:
            found = []
            for layer, image in some:
                query, column = linear_sum_assignment(costs[layer, image][:, wanted[image]])
                place = np.full((2, len(query)), [[layer], [image]], dtype=np.int64)
                found.append(np.concatenate((place, [query, wanted[image][column]])))
            return found

        shares = np.array_split(np.asarray(problems), min(self._threads, len(problems)))
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="assign")
        return np.concatenate([part for done in self._pool.map(solve, shares) for part in done], axis=1)
