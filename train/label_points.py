"""Bilinear samples of class masks, read straight from a map of label indices.

The masks of one image are disjoint, so the bilinear sample of mask k at a point is the sum of the
bilinear weights of those of its four neighbours whose label is k. That equals `grid_sample` (zeros
outside, align_corners off) of the one-hot masks, which therefore never exist, and tells at no cost how
much of a point's weight lies on void.

Letters: B image, N row, K label index of an image, P point.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from shards.batch import VOID


def labels_present(label_map: Tensor, num_labels: int) -> Tensor:
    """(B, K) bool: whether the crop holds a pixel of each of the image's K labels. No sync."""
    seen = torch.zeros((label_map.shape[0], VOID + 1), dtype=torch.bool, device=label_map.device)
    return seen.scatter_(1, label_map.flatten(1).long(), True)[:, :num_labels]


def targets_of_rows(
    label_map: Tensor, images: Tensor, wanted: Tensor, points: Tensor
) -> tuple[Tensor, Tensor]:
    """Mask values and weights, both (N, P) float32, for row n = label wanted[n] of image images[n] at
    points[n].

    label_map (B, H, W) uint8, images and wanted (N,) int64, points (N, P, 2) in 0..1. A point's weight
    is 1 less the bilinear weight of its void neighbours.
    """
    value = torch.zeros(points.shape[:2], device=points.device)
    weight = torch.ones_like(value)
    for label, share in _neighbours(label_map, images, points):
        value += share * (label == wanted[:, None])
        weight -= share * (label == VOID)
    return value, weight


def targets_of_images(label_map: Tensor, num_labels: int, points: Tensor) -> tuple[Tensor, Tensor]:
    """The same for all labels of image b at points[b]: values (B, K, P) and weights (B, P); points (B,
    P, 2).
    """
    images = torch.arange(len(label_map), device=points.device)
    wanted = torch.arange(num_labels, device=points.device)[:, None]
    weight = torch.ones(points.shape[:2], device=points.device)
    value = torch.zeros((len(label_map), num_labels, points.shape[1]), device=points.device)
    for label, share in _neighbours(label_map, images, points):
        value += share[:, None] * (label[:, None] == wanted)
        weight -= share * (label == VOID)
    return value, weight


def _neighbours(label_map: Tensor, images: Tensor, points: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Label (N, P) uint8 and bilinear weight (N, P) of each of the four pixels round each point."""
    _, height, width = label_map.shape
    flat = label_map.reshape(-1)
    # the same two roundings as grid_sample's own: to -1..1 and back
    x = (2.0 * points[..., 0] * width - 1) * 0.5
    y = (2.0 * points[..., 1] * height - 1) * 0.5
    left, top = x.floor(), y.floor()
    across, down = x - left, y - top
    first = (images * (height * width))[:, None]
    for row, part_y in ((top, 1 - down), (top + 1, down)):
        for column, part_x in ((left, 1 - across), (left + 1, across)):
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            place = first + (row.clamp(0, height - 1) * width + column.clamp(0, width - 1)).long()
            yield flat[place], part_y * part_x * inside
