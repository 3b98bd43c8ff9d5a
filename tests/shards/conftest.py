"""Hand-made batches, for tests that need no shards, and small splits on disk, for those that do."""

import io
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from shards.batch import RaggedBatch
from shards.index import ShardInfo
from shards.manifest import Manifest, write_split
from shards.record import Record
from shards.rle import encode_label_map
from shards.tar import TarWriter


def _runs_of(class_map, labels):
    """(ends, owners) of one map of class ids, 65535 where no class is: one run wherever the owner changes."""
    owners = np.zeros(class_map.size, np.uint8)
    for k, label in enumerate(labels):
        owners[class_map.ravel() == label] = k + 1
    ends = np.append(np.flatnonzero(np.diff(owners)) + 1, owners.size)
    return ends, owners[ends - 1]


@pytest.fixture(scope="session")
def make_batch():
    """Images (H, W, 3) uint8 and maps (H, W) of class ids, 65535 for none -> a RaggedBatch, made-up keys."""

    def make(images, class_maps, epochs=None, keys=None):
        ends, owners, offsets, labels, start = [], [], [0], [], 0
        for image, class_map in zip(images, class_maps, strict=True):
            assert image.shape[:2] == class_map.shape
            labels.append(tuple(int(label) for label in np.unique(class_map) if label != 65535))
            own_ends, own_owners = _runs_of(class_map, labels[-1])
            ends.append(own_ends + start)
            owners.append(own_owners)
            offsets.append(offsets[-1] + len(own_ends))
            start += class_map.size
        size = len(images)
        return RaggedBatch(
            pixels=torch.from_numpy(np.concatenate([image.ravel() for image in images])),
            run_ends=torch.from_numpy(np.concatenate(ends).astype(np.int32)),
            run_owners=torch.from_numpy(np.concatenate(owners)),
            run_offsets=tuple(offsets),
            heights=tuple(image.shape[0] for image in images),
            widths=tuple(image.shape[1] for image in images),
            labels=tuple(labels),
            keys=tuple(keys or (f"sample_{i}" for i in range(size))),
            positions=tuple(range(size)),
            epochs=tuple(epochs or [0] * size),
            valid=(True,) * size,
        )

    return make


@pytest.fixture(scope="session")
def random_scenes():
    """`count` images of random sizes within `low`..`high` with blocky random class maps, some pixels
    unlabelled.
    """

    def scenes(count, low, high, seed, classes=6):
        random = np.random.default_rng(seed)
        images, class_maps = [], []
        for _ in range(count):
            height, width = random.integers(low, high + 1, 2)
            images.append(random.integers(0, 256, (height, width, 3), dtype=np.uint8))
            block = int(random.integers(1, 12))
            coarse = random.integers(0, classes + 1, (-(-height // block), -(-width // block)))
            labels = np.array([65535, *(7 * np.arange(classes) + 3)])[coarse]
            class_maps.append(labels.repeat(block, 0).repeat(block, 1)[:height, :width])
        return images, class_maps

    return scenes


def _record(random, key):
    """A blocky picture with blocky masks: its Record, and what reading it must give."""
    height, width = (int(size) for size in random.integers(20, 60, 2))
    blocks = random.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), np.uint8)
    pixels = blocks.repeat(8, 0).repeat(8, 1)[:height, :width]
    classes = random.choice(np.array([0, 3, 7, 149, 65535], np.uint16), blocks.shape[:2])
    classes = classes.repeat(8, 0).repeat(8, 1)[:height, :width]
    image_format = str(random.choice(["jpg", "jpg", "png"]))
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG" if image_format == "jpg" else "PNG")
    decoded = np.asarray(Image.open(buffer).convert("RGB"))
    runs = encode_label_map(classes)
    record = Record(key, buffer.getvalue(), image_format, height, width, runs, {"name": key})
    return record, (decoded, classes)


@pytest.fixture(scope="session")
def make_split(tmp_path_factory):
    """make(name, [samples of each shard], seed) -> .folder, .keys per shard, .truth[key] = (image, map)."""

    def make(name, shard_samples, seed=0):
        random = np.random.default_rng([seed, len(shard_samples)])
        folder = tmp_path_factory.mktemp(name)
        infos, entries, keys, truth = [], [], [], {}
        for shard, num_samples in enumerate(shard_samples):
            keys.append([f"{name}_{shard}_{place}" for place in range(num_samples)])
            path = folder / f"training-{shard:05d}.tar"
            with TarWriter(path) as writer:
                rows = []
                for key in keys[-1]:
                    record, truth[key] = _record(random, key)
                    rows.append(writer.add(record))
            infos.append(ShardInfo(path.name, num_samples, writer.num_bytes, writer.sha256))
            entries.append(rows)
        classes = tuple(f"class {number}" for number in range(150))
        manifest = write_split(folder, Manifest("made", "training", classes, tuple(infos)), entries)
        return SimpleNamespace(folder=folder, keys=keys, truth=truth, manifest=manifest)

    return make
