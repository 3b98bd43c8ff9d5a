"""Class ids, masks and boxes of crops against loops over pixels, and the map that no cross entropy takes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from maskshards.shards.augment.crop import CropSettings, crop, draw_crops
from maskshards.shards.augment.targets import boxes, class_map, class_masks
from maskshards.shards.batch import VOID, CropBatch

SETTINGS = CropSettings(
    crop_px=(8, 8), image_px=8, ratio=None, flip_prob=0.0, photometric="none", mean=(0, 0, 0), std=(1, 1, 1)
)


def crops_of(owners, labels):
    owner_map = torch.tensor(owners, dtype=torch.int16)
    size = len(owner_map)
    images = torch.zeros(size, 3, *owner_map.shape[1:])
    return CropBatch(images, owner_map, torch.tensor(labels), tuple("abcdefgh"[:size]), tuple(range(size)))


@pytest.fixture
def cropped(make_batch):
    """Crops that are the whole 8 x 8 images, and their maps of class ids."""
    random = np.random.default_rng(3)
    maps = [random.choice([3, 149, 65535, 7 + k], (8, 8)) for k in range(4)] + [np.full((8, 8), 65535)]
    batch = make_batch([np.zeros((8, 8, 3), np.uint8)] * len(maps), maps)
    return crop(batch, draw_crops(batch, 0, SETTINGS), SETTINGS), maps


@pytest.mark.parametrize("loss", [F.cross_entropy, F.nll_loss])
@pytest.mark.parametrize("flat", [False, True])  # torch takes uint8 targets of the flat form without a word
def test_the_owner_map_is_refused_by_cross_entropy(cropped, loss, flat):
    crops = cropped[0]
    logits, target = torch.randn(len(crops.keys), 150, 8, 8), crops.owner_map
    if flat:
        logits, target = logits.movedim(1, -1).flatten(0, -2), target.flatten()
    with pytest.raises(RuntimeError, match=r"dtype|scalar type"):
        loss(logits, target, ignore_index=VOID)


@pytest.mark.parametrize("ignore_index", [255, -100, 200])
def test_class_maps_hold_class_ids(cropped, ignore_index):
    crops, maps = cropped
    found = class_map(crops, ignore_index)
    assert found.dtype == torch.int64
    expected = np.stack([np.where(ids == 65535, ignore_index, ids) for ids in maps])
    np.testing.assert_array_equal(found.numpy(), expected)
    loss = F.cross_entropy(torch.zeros(len(maps), 201, 8, 8), found, ignore_index=ignore_index)
    assert loss.item() == pytest.approx(np.log(201), rel=1e-5)


def test_a_class_is_never_counted_as_ignored(make_batch):
    ids = np.full((8, 8), 255)
    ids[:4] = 300
    batch = make_batch([np.zeros((8, 8, 3), np.uint8)], [ids])
    crops = crop(batch, draw_crops(batch, 0, SETTINGS), SETTINGS)
    for known in (crops, replace(crops, largest_class_id=None)):
        with pytest.raises(ValueError, match="255 is the id of a class"):
            class_map(known)
        np.testing.assert_array_equal(class_map(known, ignore_index=-100)[0].numpy(), ids)


def test_the_smallest_and_the_largest_class_are_not_taken_for_ignored_either():
    crops = crops_of([[[0, 1]]], [[0, 9]])
    for known in (crops, replace(crops, largest_class_id=9)):
        for class_id in (0, 9):
            with pytest.raises(ValueError, match=f"ignore_index {class_id} is the id of a class"):
                class_map(known, class_id)
        assert class_map(known, 10).tolist() == [[[0, 9]]]


def test_the_largest_class_spares_a_look_at_the_device(cropped):
    crops = cropped[0]
    assert crops.largest_class_id == 149
    nowhere = replace(crops, owner_map=crops.owner_map.to("meta"), labels=crops.labels.to("meta"))
    assert class_map(nowhere).shape == crops.owner_map.shape  # "meta" has no values that could be asked for
    nobody_knows = replace(nowhere, largest_class_id=None)
    assert class_map(nobody_knows, ignore_index=-100).shape == crops.owner_map.shape


def test_class_masks_hold_the_classes_that_show(cropped):
    crops, maps = cropped
    for found, ids in zip(class_masks(crops), maps, strict=True):
        labels = [label for label in np.unique(ids) if label != 65535]
        assert found["labels"].tolist() == labels
        expected = np.array([ids == label for label in labels]).reshape(-1, 8, 8)
        np.testing.assert_array_equal(found["masks"].numpy(), expected)
        assert (found["masks"].dtype, found["labels"].dtype) == (torch.bool, torch.int64)


def test_classes_without_a_pixel_are_left_out():
    masks = class_masks(crops_of([[[0, 2], [VOID, 2]]], [[4, 5, 6]]))[0]
    assert masks["labels"].tolist() == [4, 6]
    assert masks["masks"].tolist() == [[[True, False], [False, False]], [[False, True], [False, True]]]


def test_boxes_are_the_outermost_pixels_of_each_mask(cropped):
    crops, maps = cropped
    for found, ids in zip(boxes(crops), maps, strict=True):
        expected = []
        for label in found["labels"].tolist():
            places = [(x, y) for y in range(8) for x in range(8) if ids[y, x] == label]
            xs, ys = zip(*places, strict=True)
            expected.append([min(xs), min(ys), max(xs) + 1, max(ys) + 1])
        assert found["boxes"].dtype == torch.float32
        assert found["boxes"].tolist() == expected
    assert boxes(crops)[-1]["boxes"].shape == (0, 4)


def test_a_box_of_one_pixel_in_a_corner():
    found = boxes(crops_of([[[VOID, VOID, VOID], [VOID, VOID, 1]]], [[9, 11]]))[0]
    assert found["labels"].tolist() == [11]
    assert found["boxes"].tolist() == [[2, 1, 3, 2]]
