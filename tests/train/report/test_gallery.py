import numpy as np
import pytest
import torch

from maskshards.train.evaluation.evaluate import Observation
from maskshards.train.evaluation.metrics import ConfusionMatrix, score
from maskshards.train.report.gallery import (
    RIGHT,
    UNLABELLED,
    WRONG,
    ConfusionPair,
    Gallery,
    classes_in,
    confusion_pairs,
    error_map,
)


def _observation(number, right_share, size=(40, 60)):
    """An image of which the upper `right_share` is labelled rightly."""
    label = torch.zeros(size, dtype=torch.int64)
    label[:, size[1] // 2 :] = 1
    prediction = label.clone()
    prediction[int(right_share * size[0]) :] = 2
    label[0] = 255
    confusion = ConfusionMatrix(3).update(prediction, label)
    image = torch.full((*size, 3), 10 * number, dtype=torch.uint8)
    return Observation(f"k{number}", image, label, prediction, confusion)


def test_gallery_keeps_the_worst_and_some_taken_evenly():
    shares = [0.9, 0.2, 0.8, 0.1, 0.7, 0.3, 0.6, 0.5]
    gallery = Gallery(3, num_images=8, worst=2, spread=2)
    for number, share in enumerate(shares):
        gallery(_observation(number, share))
    assert [item.key for item in gallery.spread] == ["k0", "k4"]
    assert [item.key for item in gallery.worst] == ["k3", "k1"]
    assert gallery.worst[0].miou < gallery.worst[1].miou


def test_pictures_have_one_size_and_fit():
    gallery = Gallery(3, num_images=1, spread=1, longest_px=25)
    gallery(_observation(7, 0.5, size=(41, 61)))
    (item,) = gallery.spread
    assert item.image.shape == item.label.shape == item.prediction.shape == item.errors.shape
    assert item.image.shape == (14, 21, 3)
    assert (item.image == 70).all()
    assert item.size_px == (41, 61)
    assert item.errors[0].tolist() == [list(UNLABELLED)] * 21
    assert item.errors[2].tolist() == [list(RIGHT)] * 21
    assert item.errors[-1].tolist() == [list(WRONG)] * 21


def test_images_without_labels_are_never_the_worst():
    gallery = Gallery(3, num_images=100, worst=3, spread=0)
    empty = _observation(0, 1.0)
    empty.label.fill_(255)
    gallery(
        Observation("empty", empty.image, empty.label, empty.prediction, torch.zeros(3, 3, dtype=torch.int64))
    )
    gallery(_observation(1, 0.5))
    assert [item.key for item in gallery.worst] == ["k1"]


def test_classes_are_those_of_labels_and_prediction_most_pixels_first():
    label, prediction = np.array([[0, 0, 255]]), np.array([[3, 3, 3]])
    assert classes_in((label, prediction), num_classes=4) == (3, 0)
    gallery = Gallery(3, num_images=1, spread=1)
    gallery(_observation(7, 0.5))
    assert sorted(gallery.spread[0].classes) == [0, 1, 2]


def test_error_map_has_three_colours():
    picture = error_map(np.array([[0, 1, 1]]), np.array([[0, 0, 255]]), num_classes=2)
    assert picture.tolist() == [[list(RIGHT), list(WRONG), list(UNLABELLED)]]


def test_confusion_pairs_are_ordered_by_pixels():
    result = score(np.array([[50, 7, 0], [30, 5, 1], [0, 0, 9]]), ["sky", "sea", "sand"], 1)
    pairs = confusion_pairs(result)
    assert pairs[0] == ConfusionPair("sea", "sky", 30, pytest.approx(100 * 30 / 36))
    assert [(pair.label, pair.prediction) for pair in pairs] == [
        ("sea", "sky"),
        ("sky", "sea"),
        ("sea", "sand"),
    ]
    assert confusion_pairs(result, limit=1) == pairs[:1]
