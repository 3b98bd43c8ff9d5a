"""Images about as ADE20K's are: 683x512 px, JPEG of some 66 kB, nine classes in patches; files and shards."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from maskshards.shards.batch import EncodedBatch
from maskshards.shards.format.index import ShardInfo
from maskshards.shards.format.manifest import Manifest, write_split
from maskshards.shards.format.record import Record
from maskshards.shards.format.rle import IGNORE, encode_label_map
from maskshards.train.bench.synthetic import PATCHES, synthetic_batch

HEIGHT, WIDTH = 512, 683
SAMPLES_A_SHARD = 32
CELL_PX = 9  # size of the noise's cells: it sets how many bytes a JPEG takes
CLASSES_SHOWN = 9


def jpeg(number: int) -> bytes:
    """The file of image `number`, always the same."""
    random = np.random.default_rng(number)
    cells = random.integers(0, 256, (HEIGHT // CELL_PX, WIDTH // CELL_PX, 3), dtype=np.uint8)
    data = io.BytesIO()
    Image.fromarray(cells).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC).save(data, "jpeg", quality=90)
    return data.getvalue()


def class_map(number: int, num_classes: int) -> np.ndarray:
    """(HEIGHT, WIDTH) uint16 class ids in patches, some without any."""
    random = np.random.default_rng(number)
    ids = random.choice(num_classes, min(CLASSES_SHOWN, num_classes), replace=False)
    patch = random.choice(np.append(ids, IGNORE), (PATCHES, PATCHES)).astype(np.uint16)
    rows, columns = (np.arange(side) * PATCHES // side for side in (HEIGHT, WIDTH))
    return patch[rows[:, None], columns]


def encoded_batch(size: int) -> EncodedBatch:
    """`size` JPEG images to be decoded on a device, with the runs of made-up labels."""
    files = [np.frombuffer(jpeg(number), np.uint8) for number in range(size)]
    rest = synthetic_batch(size, CLASSES_SHOWN, height=HEIGHT, width=WIDTH)
    offsets = np.cumsum([0, *(len(file) for file in files)])
    return EncodedBatch(
        torch.from_numpy(np.concatenate(files)), tuple(int(i) for i in offsets), ("jpg",) * size,
        replace(rest, pixels=torch.empty(0, dtype=torch.uint8)),
    )  # fmt: skip


def write_made_split(folder: Path, num_samples: int, num_classes: int) -> Path:
    """`folder`/training with so many samples; returns `folder`. Needs zstandard."""
    from maskshards.shards.format.tar import TarWriter  # zstandard, which a bare GPU machine may lack

    target = folder / "training"
    target.mkdir(parents=True)
    infos, entries = [], []
    for shard, first in enumerate(range(0, num_samples, SAMPLES_A_SHARD)):
        name, rows = f"training-{shard:05d}.tar", []
        with TarWriter(target / name) as writer:
            for number in range(first, min(first + SAMPLES_A_SHARD, num_samples)):
                runs, source = encode_label_map(class_map(number, num_classes)), {"name": f"made {number}"}
                record = Record(f"made{number:06d}", jpeg(number), "jpg", HEIGHT, WIDTH, runs, source)
                rows.append(writer.add(record))
        infos.append(ShardInfo(name, len(rows), writer.num_bytes, writer.sha256))
        entries.append(rows)
    classes = tuple(f"class {i}" for i in range(num_classes))
    write_split(target, Manifest("made", "training", classes, tuple(infos), {}), entries)
    return folder
