"""Large images window by window, at their own scale, in memory that does not grow with them.

The windows, their places and the mean where they overlap are those of `evaluation.inference`; only their
scores are never all held: columns are taken in panels, and in a panel a band as high as one window moves
down. What no later window can reach is labelled and forgotten. Windows across the edge of a panel are
computed twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from maskshards.train.evaluation.inference import InferenceSettings, check_finite, windows

BAND_BYTES = 1 << 30  # scores of one band
BATCH_BYTES = 256 << 20  # scores of the windows that go through the model together
BATCH_PX = 1 << 18  # and their pixels, but never fewer windows than the settings say

Scorer = Callable[[Tensor], Tensor]  # (B, 3, h, w) uint8 RGB -> (B, C, h, w) float32


@torch.no_grad()
def label_mosaic(
    image: np.ndarray,
    score: Scorer,
    num_classes: int,
    settings: InferenceSettings,
    *,
    device: torch.device | str = "cpu",
    band_bytes: int = BAND_BYTES,
) -> np.ndarray:
    """(H, W) class ids, uint8 (uint16 beyond 256 classes), of a (H, W, 3) uint8 RGB image of any size.

    Raises NonFiniteScores as `label_maps` does.
    """
    height, width = image.shape[:2]
    grid = windows(height, width, settings.crop_px, settings.stride_px)
    tall, wide = grid[0][2:]
    tops, lefts = (sorted({place[axis] for place in grid}) for axis in (0, 1))
    labels = np.empty((height, width), np.uint8 if num_classes <= 256 else np.uint16)
    many = min(BATCH_PX // (tall * wide), BATCH_BYTES // (4 * num_classes * tall * wide))
    at_once = max(settings.windows_at_once, many)
    for left, right in panels(lefts, wide, width, band_bytes // (4 * (num_classes + 1) * tall)):
        mine = [x for x in lefts if x < right and x + wide > left]
        band = Band(num_classes, tall, mine[0], mine[-1] + wide, device)
        for top in tops:
            band.move_down(top, labels, left, right)
            for first in range(0, len(mine), at_once):
                columns = mine[first : first + at_once]
                batch = np.stack([image[top : top + tall, x : x + wide] for x in columns])
                band.add(columns, score(torch.from_numpy(batch).to(device).permute(0, 3, 1, 2)))
        band.move_down(height, labels, left, right)
    return labels


def panels(lefts: Sequence[int], wide: int, width: int, most_px: int) -> list[tuple[int, int]]:
    """(left, right) px of panels that cover `width`, their borders where windows start.

    The windows that touch a panel span `most_px` at most, unless that is less than three windows.
    """
    borders = [0]
    for before, left in pairwise(lefts):
        if left - borders[-1] > most_px - 2 * wide and before > borders[-1]:
            borders.append(before)
    return list(zip(borders, [*borders[1:], width], strict=True))


class Band:
    """Sums of scores of rows `top` to `top + tall` and columns `left` to `right`, px of the image."""

    def __init__(
        self, num_classes: int, tall: int, left: int, right: int, device: torch.device | str
    ) -> None:
        self.top, self.left = 0, left
        self.sums = torch.zeros(num_classes, tall, right - left, device=device)
        self.counts = torch.zeros(tall, right - left, device=device)

    def add(self, lefts: Sequence[int], scores: Tensor) -> None:
        """Add the scores (B, C, tall, wide) of windows at these columns."""
        for x, one in zip(lefts, scores, strict=True):
            columns = slice(x - self.left, x - self.left + one.shape[-1])
            self.sums[:, :, columns] += one
            self.counts[:, columns] += 1

    def move_down(self, top: int, labels: np.ndarray, left: int, right: int) -> None:
        """Label the rows above `top`, which no window reaches any more, and begin there."""
        done = min(top - self.top, self.sums.shape[1])
        if done <= 0:
            return
        columns = slice(left - self.left, right - self.left)
        means = self.sums[:, :done, columns].div_(self.counts[:done, columns])  # in place: they are done
        best, winners = means.max(dim=0)
        check_finite(best)
        labels[self.top : self.top + done, left:right] = winners.cpu().numpy()
        for held in (self.sums, self.counts):
            kept = held[..., done:, :]
            rows = kept.shape[-2]
            held[..., :rows, :] = kept if rows <= done else kept.clone()
            held[..., rows:, :] = 0
        self.top += done
