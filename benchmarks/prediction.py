"""Images a second of predictions, and large images: python benchmarks/prediction.py RUN FOLDER

RUN is any run (that of `make demo` will do), FOLDER a place for the images that are made and for what is
predicted. Ways are timed in turns in one process; memory is the peak of a process that does nothing else.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

from maskshards.train.prediction.find_images import find_images
from maskshards.train.prediction.image_files import read_image
from maskshards.train.prediction.label_files import Pace, label_files
from maskshards.train.prediction.outputs import Outputs
from maskshards.train.predictor import load_model

PHOTOS, ROUNDS = 48, 3
STRIPS = ((30_000, 1), (2, 20_000), (200, 16_000))  # height, width px


def make_photos(folder):
    """Photographs of 640 x 480 px: soft blobs with noise, so that JPEG has work to do."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for number in range(PHOTOS):
        blobs = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((640, 480))
        noise = rng.integers(-20, 20, (480, 640, 3))
        pixels = (np.asarray(blobs).astype(int) + noise).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:03d}.jpg", quality=90)


def one_by_one(model, images, outputs):
    """What a loop of four lines does."""
    for path, name in images:
        pixels = read_image(path)
        outputs.write(name, pixels, model.predict(pixels))


def pace_of_photos(run, folder):
    """Images a second of each way: the median of several turns."""
    make_photos(folder / "photos")
    model = load_model(run, device="cpu")
    images = find_images([str(folder / "photos")]).images
    outputs = Outputs(folder / "out", model.class_names)
    outputs.prepare()
    ways = {
        "one by one": lambda: one_by_one(model, images, outputs),
        "decode and write on 2 threads": lambda: label_files(model, images, outputs, Pace(1, 2)),
        "the same, 8 images together": lambda: label_files(model, images, outputs, Pace(8, 2)),
    }
    model.predict(read_image(images[0][0]))  # warm
    taken = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            since = time.monotonic()
            way()
            taken[name].append(PHOTOS / (time.monotonic() - since))
    for name, paces in taken.items():
        print(f"{name:32} {np.median(paces):6.2f} images/s")


def large(run, folder, name, height, width, *more):
    """Wall seconds and peak memory of one command on one large image."""
    path = folder / f"{name}.png"
    Image.new("L", (width, height), 99).save(path, compress_level=1)
    command = [sys.executable, "-m", "maskshards", "predict", str(run), str(path), "--device", "cpu"]
    before = time.monotonic()
    done = subprocess.Popen([*command, "--output", str(folder / name), *more])
    _, status, used = os.wait4(done.pid, 0)
    took_s, peak_gb = time.monotonic() - before, used.ru_maxrss * 1024 / 1e9
    print(f"{name:20} {height} x {width} px: status {status}, {took_s:.0f} s, {peak_gb:.2f} GB")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", choices=("photos", "mosaic", "strips"))
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    if given.only in (None, "photos"):
        pace_of_photos(given.run, given.folder)
    if given.only in (None, "strips"):
        for height, width in STRIPS:
            large(given.run, given.folder, f"strip-{height}", height, width)
            large(given.run, given.folder, f"strip-{height}-mosaic", height, width, "--mosaic")
    if given.only in (None, "mosaic"):
        large(given.run, given.folder, "mosaic", 10_000, 20_000, "--mosaic")


if __name__ == "__main__":
    main()
