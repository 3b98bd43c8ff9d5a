"""Small data sets in the folder layout, made from numbers, for the tests of the build."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def make_root(tmp_path):
    """make_root(training=3, validation=2, name="root") -> a folder with images/, annotations/ and
    classes.txt (5 classes).
    """

    def make(name="root", *, height=24, width=30, **counts):
        root = tmp_path / name
        root.mkdir(parents=True)
        (root / "classes.txt").write_text("sky\nroad\ntree\ncar\nperson\n")
        rng = np.random.default_rng(5)
        for split, count in (counts or {"training": 3, "validation": 2}).items():
            for number in range(count):
                write_pair(root, split, f"{split}_{number:04d}", rng, height + number % 3, width)
        return root

    return make


def write_pair(root, split, stem, rng, height, width):
    """One JPEG and one label map with values 0..5 in blocks."""
    image, label = root / "images" / split / f"{stem}.jpg", root / "annotations" / split / f"{stem}.png"
    image.parent.mkdir(parents=True, exist_ok=True)
    label.parent.mkdir(parents=True, exist_ok=True)
    pixels = (
        rng.integers(0, 256, (height // 4 + 1, width // 4 + 1, 3), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
    )
    Image.fromarray(pixels[:height, :width]).save(image, "JPEG", quality=85)
    values = rng.integers(0, 6, (height // 6 + 1, width // 6 + 1), dtype=np.uint8).repeat(6, 0).repeat(6, 1)
    Image.fromarray(values[:height, :width]).save(label, "PNG")


@pytest.fixture
def real_data():
    """The folder of real data sets, or a skip that says what is missing."""
    place = os.environ.get("MASKSHARDS_TEST_DATA")
    if not place:
        pytest.skip("MASKSHARDS_TEST_DATA is not set: no real images here")
    return Path(place)
