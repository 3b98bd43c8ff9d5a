"""Labelled runs against PNG and pycocotools on the same label maps, in one process and one thread.

    OMP_NUM_THREADS=1 python benchmarks/format_codec.py FOLDER_OF_LABEL_PNGS [--zero-is-void]

Times are CPU time of the thread in ms an image, the best of five rounds, so that other work on the machine
hardly shows; bytes are means.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import zstandard
from PIL import Image
from pycocotools import mask as coco

from maskshards.shards.format.coco import to_coco
from maskshards.shards.format.rle import (
    ZSTD_LEVEL,
    decode_label_map,
    encode_label_map,
    pack_runs,
    unpack_runs,
)

ROUNDS = 5


def per_image_ms(work: Callable[[int], object], count: int) -> float:
    best = float("inf")
    for _ in range(ROUNDS):
        start = time.thread_time()
        for number in range(count):
            work(number)
        best = min(best, time.thread_time() - start)
    return round(1e3 * best / count, 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--zero-is-void", action="store_true")
    args = parser.parse_args()
    files = [path.read_bytes() for path in sorted(args.folder.rglob("*.png"))]
    shift = np.uint16(1 if args.zero_is_void else 0)
    maps = [np.asarray(Image.open(io.BytesIO(data))).astype(np.uint16) - shift for data in files]
    runs = [encode_label_map(class_map) for class_map in maps]
    packed = [pack_runs(run, *class_map.shape) for run, class_map in zip(runs, maps, strict=True)]
    inflate = zstandard.ZstdDecompressor()
    masks = [
        [np.asfortranarray(m == k).astype(np.uint8) for k in r.labels]
        for r, m in zip(runs, maps, strict=True)
    ]
    strings = [
        b"".join(mask["counts"] for mask in to_coco(r, *m.shape)) for r, m in zip(runs, maps, strict=True)
    ]
    level = zstandard.ZstdCompressor(level=ZSTD_LEVEL)
    count = len(maps)
    times = {
        "png_decode": lambda i: np.asarray(Image.open(io.BytesIO(files[i]))),
        "runs_encode": lambda i: encode_label_map(maps[i]),
        "runs_pack": lambda i: pack_runs(runs[i], *maps[i].shape),
        "runs_unpack": lambda i: unpack_runs(packed[i], *maps[i].shape, inflate),
        "runs_to_pixels": lambda i: decode_label_map(runs[i], *maps[i].shape),
        "runs_to_coco": lambda i: to_coco(runs[i], *maps[i].shape),
        "pycocotools_encode": lambda i: [coco.encode(mask) for mask in masks[i]],
    }
    sizes = {"png": files, "runs": packed, "coco": strings, "coco_zstd": [level.compress(s) for s in strings]}
    facts: dict[str, object] = {"images": count, "masks": sum(len(run.labels) for run in runs)}
    facts["ms"] = {name: per_image_ms(work, count) for name, work in times.items()}
    facts["bytes"] = {name: round(sum(map(len, datas)) / count) for name, datas in sizes.items()}
    sys.stdout.write(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
