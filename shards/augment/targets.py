"""Targets that other losses take, made of the compact owner map of a batch of crops.

The owner map numbers the classes of each image from 0, so its values mean another class in every image. Here
they become class ids for a cross entropy, one mask a class for a set loss, or one box a class.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from maskshards.shards.batch import VOID, CropBatch

IGNORE_INDEX = 255  # the field's usual value for "no class"


def class_map(crops: CropBatch, ignore_index: int = IGNORE_INDEX) -> Tensor:
    """(B, H, W) int64 class ids, `ignore_index` where a pixel has no class: what `F.cross_entropy` takes.

    ValueError if `ignore_index` is a class of the batch, whose pixels would be lost; -100 never is. Waits for
    the device only to find that out, where class ids as large as `ignore_index` occur.
    """
    largest = crops.largest_class_id
    may_hold = ignore_index >= 0 and (largest is None or largest >= ignore_index)
    if may_hold and bool((crops.labels == ignore_index).any()):
        raise ValueError(
            f"ignore_index {ignore_index} is the id of a class in this batch, whose pixels would count as "
            "ignored; use a negative one such as -100, here and in the loss"
        )
    # A negative label fills the table beyond an image's own classes; only VOID points there.
    table = F.pad(crops.labels, (0, VOID + 1 - crops.labels.shape[1]), value=ignore_index)
    return table.gather(1, crops.owner_map.flatten(1).long()).view(crops.owner_map.shape)


def class_masks(crops: CropBatch) -> list[dict[str, Tensor]]:
    """B times {"masks": (N, H, W) bool, "labels": (N,) int64}, of the N classes with a pixel in the crop.

    N may be 0; labels ascend. This is where the host waits for the device: N must be known to shape the
    result.
    """
    size, room = crops.owner_map.shape[0], VOID + 1
    image = torch.arange(size, device=crops.owner_map.device)[:, None]
    slot = crops.owner_map.view(size, -1) + image * room
    present = torch.bincount(slot.view(-1), minlength=size * room).view(size, room)[:, :VOID] > 0
    result = []
    for owner_map, labels, here in zip(crops.owner_map, crops.labels, present, strict=True):
        indices = here.nonzero()[:, 0]
        result.append({"masks": owner_map == indices[:, None, None], "labels": labels[indices]})
    return result


def boxes(crops: CropBatch) -> list[dict[str, Tensor]]:
    """B times {"boxes": (N, 4) float32, "labels": (N,) int64}: the box round each of `class_masks`.

    A box is (left, top, right, bottom) in pixels of the crop, right and bottom exclusive, as torchvision's
    detectors take it. Waits for the device.
    """
    result = []
    for target in class_masks(crops):
        left, right = _extent(target["masks"].any(1))
        top, bottom = _extent(target["masks"].any(2))
        result.append(
            {"boxes": torch.stack((left, top, right, bottom), 1).float(), "labels": target["labels"]}
        )
    return result


def _extent(line: Tensor) -> tuple[Tensor, Tensor]:
    """First place and place after the last of what holds in each row of (N, L) bool; each has one."""
    hits = line.to(torch.uint8)
    return hits.argmax(1), line.shape[1] - hits.flip(1).argmax(1)
