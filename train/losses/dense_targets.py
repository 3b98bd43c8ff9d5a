"""Dense masks to owner maps, for training scripts that have masks and want the matched loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from maskshards.shards.batch import VOID, CropBatch


class TargetError(ValueError):
    """Masks that an owner map cannot hold."""


def crops_from_masks(
    targets: Sequence[Mapping[str, Tensor]], positions: Sequence[int], keys: Sequence[str] | None = None
) -> CropBatch:
    """What `MatchedLoss` reads, without images, from one dictionary of masks an image.

    `targets`: {"masks": (N, H, W) bool or 0/1, "labels": (N,)} an image.

    `positions` name the samples: the loss draws its points from them. Pixels in no mask become void.
    Masks of an image must share a size, be disjoint, at most 255 and of different labels; TargetError
    otherwise. Waits for the device, once an image.
    """
    names = tuple(keys) if keys is not None else tuple(f"sample {position}" for position in positions)
    sizes = {tuple(target["masks"].shape[1:]) for target in targets}
    if len(sizes) != 1:
        raise TargetError(f"masks of {sorted(sizes)} pixels in one batch; crop or pad them to one size")
    maps, rows = [], []
    for target, name in zip(targets, names, strict=True):
        order = target["labels"].long().argsort()
        labels, masks = target["labels"].long()[order], target["masks"][order].bool()
        if len(labels) > VOID or len(labels.unique()) != len(labels):
            raise TargetError(
                f"{name}: {len(labels)} labels {labels.tolist()}; expected at most {VOID} different ones"
            )
        if bool((masks.sum(0) > 1).any()):
            raise TargetError(f"{name}: masks overlap; a pixel of a semantic label map has one class")
        index = torch.arange(len(labels), device=masks.device)[:, None, None]
        owner_map = torch.where(masks, index, 0).sum(0).masked_fill(~masks.any(0), VOID)
        maps.append(owner_map.to(torch.int16))
        rows.append(labels)
    device, widest = maps[0].device, max(1, *(len(row) for row in rows))
    labels = torch.full((len(rows), widest), -1, device=device)
    for place, row in enumerate(rows):
        labels[place, : len(row)] = row
    nothing = torch.zeros((len(maps), 3, 0, 0), device=device)
    return CropBatch(nothing, torch.stack(maps), labels, names, tuple(positions))
