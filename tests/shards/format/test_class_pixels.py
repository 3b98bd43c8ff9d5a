import numpy as np

from maskshards.shards.format.class_pixels import ClassPixels, class_notes, count_class_pixels
from maskshards.shards.format.manifest import open_split


def pixels_of(split, counts, total=100, classes=("sky", "road", "car")):
    return ClassPixels(split, classes, np.array(counts, np.int64), total)


def test_classes_without_a_pixel_and_in_one_split_only():
    notes = class_notes([pixels_of("train", [60, 0, 30]), pixels_of("val", [100, 0, 0])])
    assert notes == [
        "1 class has no pixel: 'road' (1)",
        "seen in one split only: train: 'car' (2)",
        "void pixels: train 10.0%, val 0.0%",
    ]


def test_one_split_whose_classes_are_all_there():
    assert class_notes([pixels_of("train", [20, 30, 50])]) == ["void pixels: train 0.0%"]
    assert class_notes([]) == []
    assert pixels_of("train", [0, 0, 0], total=0).void_share == 0.0


def test_long_lists_are_cut():
    names = tuple(f"c{number}" for number in range(20))
    (line, _) = class_notes([pixels_of("train", [1] + [0] * 19, 1, names)])
    assert line.startswith("19 of 20 classes have no pixel: 'c1' (1), 'c2' (2), ")
    assert line.endswith("'c8' (8) and 11 more")


def test_counts_are_those_of_the_maps(make_split):
    made = make_split("counted", [3, 4])
    found = count_class_pixels(open_split(made.folder))
    flat = np.concatenate([class_map.ravel() for _, class_map in made.truth.values()])
    assert found.pixels.tolist() == [(flat == label).sum() for label in range(150)]
    assert found.total == flat.size
    assert 0 < found.void_share < 1
