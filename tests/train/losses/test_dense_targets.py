"""Dense masks to label maps and back, and what cannot be one."""

import pytest
import torch

from maskshards.shards.batch import VOID
from maskshards.train.losses.dense_targets import TargetError, crops_from_masks


def target(owner_map: torch.Tensor, labels: list[int]) -> dict[str, torch.Tensor]:
    masks = (
        torch.stack([owner_map == label for label in labels]) if labels else torch.zeros(0, *owner_map.shape)
    )
    return {"masks": masks, "labels": torch.tensor(labels)}


def test_masks_come_back_by_label() -> None:
    generator = torch.Generator().manual_seed(0)
    maps = torch.randint(
        0, 6, (2, 7, 9), generator=generator
    )  # classes 0..5, of which 1 and 4 are in no mask
    targets = [target(maps[0], [5, 0, 3, 2]), target(maps[1], [2])]
    crops = crops_from_masks(targets, [8, 9])
    assert crops.labels.tolist() == [[0, 2, 3, 5], [2, -1, -1, -1]]
    assert crops.positions == (8, 9)
    assert crops.owner_map.dtype == torch.int16
    for image in range(2):
        for mask, label in zip(targets[image]["masks"], targets[image]["labels"], strict=True):
            index = crops.labels[image].tolist().index(int(label))
            assert torch.equal(crops.owner_map[image] == index, mask)
    assert torch.equal(crops.owner_map[0] == VOID, (maps[0] == 1) | (maps[0] == 4))


def test_images_without_masks_are_void() -> None:
    crops = crops_from_masks([target(torch.zeros(4, 4), [])], [0])
    assert crops.owner_map.eq(VOID).all()
    assert crops.labels.tolist() == [[-1]]


def test_what_no_label_map_holds_is_refused() -> None:
    everywhere = torch.ones(2, 4, 4, dtype=torch.bool)
    with pytest.raises(TargetError, match="sample 3: masks overlap"):
        crops_from_masks([{"masks": everywhere, "labels": torch.tensor([1, 2])}], [3])
    with pytest.raises(TargetError, match="different ones"):
        crops_from_masks([{"masks": everywhere, "labels": torch.tensor([1, 1])}], [3], keys=["a"])
    with pytest.raises(TargetError, match="crop or pad"):
        crops_from_masks([target(torch.zeros(4, 4), [0]), target(torch.zeros(5, 4), [0])], [0, 1])
