"""Made images are like real ones in size, the same every time, and a loader reads them back."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from maskshards.shards.format.manifest import open_split
from maskshards.shards.format.rle import IGNORE
from maskshards.shards.loading.loader import Loader
from maskshards.shards.order.order import World
from maskshards.train.bench.parts import made_images


def test_files_are_about_as_large_as_those_of_ade20k() -> None:
    data = made_images.jpeg(3)
    assert data == made_images.jpeg(3)
    assert 40_000 < len(data) < 100_000
    assert Image.open(io.BytesIO(data)).size == (683, 512)


def test_labels_come_in_patches_of_few_classes() -> None:
    found = np.unique(made_images.class_map(5, 150))
    assert 5 <= len(found) <= 10
    assert found.max() in (IGNORE, *range(150))


def test_an_encoded_batch_holds_its_files() -> None:
    batch = made_images.encoded_batch(2)
    start, end = batch.encoded_offsets[1:3]
    assert bytes(batch.encoded[start:end].numpy()) == made_images.jpeg(1)
    assert len(batch) == 2


def test_a_made_split_is_a_split(tmp_path: Path) -> None:
    root = made_images.write_made_split(tmp_path / "made", 3, 20)
    split = open_split(root / "training")
    assert split.manifest.num_samples == 3
    with Loader(split, batch_per_rank=3, global_batch=3, world=World(), seed=0, threads=1) as loader:
        batch = next(iter(loader))
    assert sorted(batch.keys) == ["made000000", "made000001", "made000002"]
    assert set(batch.heights) == {512}
