"""Small data sets in the folder layout, made from numbers, for the tests of the build."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskshards.preprocess.__main__ import main
from maskshards.shards.__main__ import main as shards_main


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
def write_image():
    """write_image(path, height=24, width=32): a picture in the format of its ending."""

    def write(path, height=24, width=32):
        path.parent.mkdir(parents=True, exist_ok=True)
        seed = sum(path.name.encode())
        pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)

    return write


@pytest.fixture
def write_label():
    """write_label(path, values, kind=uint8, height=24, width=32): upright stripes of those values."""

    def write(path, values, kind=np.uint8, height=24, width=32):
        path.parent.mkdir(parents=True, exist_ok=True)
        columns = np.array(values, kind)[np.arange(width) * len(values) // width]
        Image.fromarray(np.tile(columns, (height, 1))).save(path)

    return write


@dataclass
class Told:
    """What a build said, and where its shards are."""

    out: str
    err: str
    out_folder: Path


@pytest.fixture
def build_and_check(tmp_path, capsys):
    """build_and_check(kind, root, *words): build, compare with the source, and describe; all must succeed."""

    def build(kind, root, *words):
        out = tmp_path / "shards"
        source = ["--dataset", kind] if root is None else ["--dataset", kind, "--root", str(root)]
        assert main(["build", *source, "--out", str(out), "--workers", "1", "--quiet", *words]) == 0
        told = capsys.readouterr()
        against = kind if root is None else str(root)
        assert main(["verify", str(out), "--against", against, "--workers", "1"]) == 0
        assert " 0 differences" in capsys.readouterr().out
        assert shards_main(["info", str(out)]) == 0
        capsys.readouterr()
        return Told(told.out, told.err, out)

    return build


@pytest.fixture
def real_data():
    """The folder of real data sets, or a skip that says what is missing."""
    place = os.environ.get("MASKSHARDS_TEST_DATA")
    if not place:
        pytest.skip("MASKSHARDS_TEST_DATA is not set: no real images here")
    return Path(place)
