"""Bilinear samples of class masks, read straight from a map of label indices.

The masks of one image are disjoint, so the bilinear sample of mask k at a point is the sum of the
bilinear weights of those of its four neighbours whose label is k. That equals `grid_sample` (zeros
outside, align_corners off) of the one-hot masks, which therefore never exist, and tells at no cost how
much of a point's weight lies on void.

Letters: B image, N row, K label index of an image, P point.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from maskshards.shards.batch import VOID

OUTSIDE = -1  # label of what lies beyond the map: no mask and no void


def labels_present(owner_map: Tensor, num_labels: int) -> Tensor:
    """(B, K) bool: whether the crop holds a pixel of each of the image's K labels. No sync."""
    seen = torch.zeros((owner_map.shape[0], VOID + 1), dtype=torch.bool, device=owner_map.device)
    return seen.scatter_(1, owner_map.flatten(1).long(), True)[:, :num_labels]


def padded(owner_map: Tensor) -> Tensor:
    """(B, H + 2, W + 2) int16: the map in a border of OUTSIDE, so every point in 0..1 has four neighbours."""
    return F.pad(owner_map.to(torch.int16), (1, 1, 1, 1), value=OUTSIDE)


def targets_of_rows(bordered: Tensor, images: Tensor, wanted: Tensor, points: Tensor) -> Tensor:
    """(N, P) float32 for row n = mask of label wanted[n] of image images[n], sampled at points[n].

    bordered (B, H + 2, W + 2) from `padded`, images and wanted (N,) int64, points (N, P, 2) in 0..1. With
    wanted = VOID it is the share of each point that lies on void.
    """
    places = _Neighbours(bordered, images, points)
    return places.share_of(wanted[:, None])


def targets_of_images(bordered: Tensor, num_labels: int, points: Tensor) -> tuple[Tensor, Tensor]:
    """All masks of image b at points[b] (P, 2): (B, K, P), and the share of void (B, P)."""
    places = _Neighbours(bordered, torch.arange(len(bordered), device=points.device), points)
    shares = torch.stack([places.share_of(k) for k in range(num_labels)], 1)
    return shares, places.share_of(VOID)


class _Neighbours:
    """The four pixels round each point (N, P), and where the point lies between them."""

    def __init__(self, bordered: Tensor, images: Tensor, points: Tensor) -> None:
        _, height, width = bordered.shape
        # in pixels of the bordered map: grid_sample's own rule, 1 further from the edge
        x = points[..., 0] * (width - 2) + 0.5
        y = points[..., 1] * (height - 2) + 0.5
        left, top = x.floor(), y.floor()
        self.across, self.down = x.sub_(left), y.sub_(top)
        # float32 holds every place of a map of up to 4,094 x 4,094 pixels exactly
        place = top.mul_(width).add_(left).to(torch.int64).add_((images * (height * width))[:, None])
        flat = bordered.view(-1)
        self.labels = [flat[place], flat[place + 1], flat[place + width], flat[place + width + 1]]

    def share_of(self, label: Tensor | int) -> Tensor:
        """(N, P): bilinear weight of those neighbours whose label it is."""
        left_top, right_top, left_low, right_low = ((own == label).float() for own in self.labels)
        upper = left_top.lerp_(right_top, self.across)
        return upper.lerp_(left_low.lerp_(right_low, self.across), self.down)
