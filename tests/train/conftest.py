"""A tiny data set in shards, and the settings of a run on it that takes a second."""

import io
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskshards.shards.format.index import ShardInfo
from maskshards.shards.format.manifest import Manifest, write_split
from maskshards.shards.format.record import Record
from maskshards.shards.format.rle import IGNORE, encode_label_map
from maskshards.shards.format.tar import TarWriter

CLASSES = ("ground", "box", "disc")
COLOURS = np.array([(90, 140, 60), (200, 60, 50), (50, 80, 210)], np.uint8)


@pytest.fixture(autouse=True)
def level_of_the_log() -> Iterator[None]:
    """A launch in the test's own process sets it, and no later test is to see more lines for it."""
    log = logging.getLogger("maskshards.train")
    before = log.level
    yield
    log.setLevel(before)


def scene(number: int) -> tuple[np.ndarray, np.ndarray]:
    """(H, W, 3) RGB and (H, W) class ids with a few ignored pixels: a box and a disc on noisy ground."""
    random = np.random.default_rng(number)
    height, width = (int(side) for side in random.integers(72, 100, 2))
    y, x = np.mgrid[:height, :width]
    class_map = np.zeros((height, width), np.uint16)
    top, left = random.integers(4, 30, 2)
    class_map[top : top + 30, left : left + 28] = 1
    centre_y, centre_x = random.integers(30, 60, 2)
    class_map[(y - centre_y) ** 2 + (x - centre_x) ** 2 < 200] = 2
    image = COLOURS[class_map] + random.integers(-20, 20, (height, width, 3))
    class_map[:3] = IGNORE
    return image.clip(0, 255).astype(np.uint8), class_map


def write_shards(folder: Path, split: str, numbers: range, classes: tuple[str, ...] = CLASSES) -> Path:
    """Write one split of scenes, four to a shard."""
    (folder / split).mkdir(parents=True)
    infos, entries = [], []
    for shard, first in enumerate(range(numbers.start, numbers.stop, 4)):
        name, rows = f"{split}-{shard:05d}.tar", []
        with TarWriter(folder / split / name) as writer:
            for number in range(first, min(first + 4, numbers.stop)):
                image, class_map = scene(number)
                data = io.BytesIO()
                Image.fromarray(image).save(data, "png")
                runs = encode_label_map(class_map)
                source = {"name": f"scene{number}.png"}
                key = f"scene{number:03d}"
                rows.append(writer.add(Record(key, data.getvalue(), "png", *class_map.shape, runs, source)))
        infos.append(ShardInfo(name, len(rows), writer.num_bytes, writer.sha256))
        entries.append(rows)
    manifest = Manifest("scenes", split, classes, tuple(infos), {"reduce_zero_label": False})
    write_split(folder / split, manifest, entries)
    return folder


@pytest.fixture(scope="session")
def tiny_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a training split of 12 scenes and a validation split of 4."""
    folder = tmp_path_factory.mktemp("shards")
    write_shards(folder, "training", range(12))
    return write_shards(folder, "validation", range(100, 104))


@pytest.fixture
def tiny_run(tiny_shards: Path, tmp_path: Path) -> list[str]:
    """Arguments of `maskshards train` for eight quick steps into `tmp_path / "run"`."""
    return [
        f"datasets.root={tiny_shards}", "datasets.train=training", "datasets.val=validation",
        f"output_dir={tmp_path / 'run'}", "model.dino_hub=dinov3_tiny16", "model.weights=random",
        "bs=2", "n_gpus=1", "num_workers=1", "seed=3",
        "scheduler.total_iter=8", "optimizer.lr=1e-3", "optimizer.gradient_clip=1.0",
        "decoder_head.num_classes=3", "decoder_head.hidden_dim=32", "decoder_head.ffn_dim=64",
        "decoder_head.num_queries=12",
        "decoder_head.backbone_out_layers=FOUR_EVEN_INTERVALS", "m2f_train.num_points=64",
        "transforms.train.img_size=64", "transforms.train.crop_size=[64,64]",
        "transforms.train.random_img_size_ratio_range=[0.5,2.0]", "transforms.train.flip_prob=0.5",
        "transforms.eval.img_size=64", "eval.crop_size=64", "eval.stride=48", "eval.eval_interval=4",
        "log.interval=2",
    ]  # fmt: skip


@pytest.fixture
def shallow(monkeypatch: pytest.MonkeyPatch) -> None:
    """One layer of the pixel decoder, and of the query decoder one for each map that a layer can look at: for
    tests of what surrounds a model. Six and nine are most of the time that the tiny model takes.
    """
    monkeypatch.setattr("maskshards.train.model.heads.pixel_decoder.NUM_LAYERS", 1)
    monkeypatch.setattr("maskshards.train.model.heads.query_decoder.NUM_LAYERS", 3)
