"""Other ways to feed the same training, for `maskshards bench loader URL --baselines` to compare with.

All work on the same samples, which are written out as loose files first where a way needs them:

* "A": loose files, Pillow, resize, crop and flip on the CPU, normalised floats and one float mask a class, in
  worker processes of a DataLoader: what most segmentation code does.
* "Q": loose files, Pillow, threads; whole 8-bit images and label maps, geometry left to the device.
* "D": the same shards through stock webdataset and worker processes, with the same JPEG and run decoders as
  the loader; whole 8-bit images and runs, geometry left to the device.
* "loader": this package's; "loader - JPEG": with images left encoded for a GPU to decode; "loader + crop":
  followed by the crop on the CPU, which is like for like with "A".

A way is a function that begins a stream of batches.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import cycle, islice
from operator import attrgetter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import simplejpeg
import torch
import webdataset as wds
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from maskshards.shards.augment.crop import CropSettings, crop, draw_crops
from maskshards.shards.augment.resize import short_side_size
from maskshards.shards.batch import EncodedBatch, RaggedBatch
from maskshards.shards.commands.stopwatch import WARM_UP, Figures, best_of, time_stream
from maskshards.shards.format.manifest import Split
from maskshards.shards.format.rle import IGNORE, decode_label_map, unpack_runs
from maskshards.shards.format.tar import read_members
from maskshards.shards.loading.loader import Loader
from maskshards.shards.loading.ordered_map import in_order

MAX_CLASSES = 255  # labels of loose files are bytes, 0 for no class


def write_loose(split: Split, folder: Path) -> list[Path]:
    """Images as they are, and label PNGs (0 = no class, else class + 1); the images' paths.

    Raises ValueError for a split with more classes than a byte counts.
    """
    if len(split.manifest.classes) > MAX_CLASSES:
        raise ValueError(
            f"baselines need at most {MAX_CLASSES} classes, the split has {len(split.manifest.classes)}"
        )
    paths = []
    for number, shard in enumerate(split.manifest.shards):
        index = split.index(number)
        for entry in map(index.entry, range(len(index))):
            (_, image), _, (_, packed) = read_members(
                partial(split.store.read, shard.name), entry, shard=shard.name
            )
            path = folder / f"{entry.key.replace('/', '_')}.{entry.image_format}"
            path.write_bytes(image)
            runs = unpack_runs(packed, entry.height, entry.width)
            labels = decode_label_map(runs, entry.height, entry.width)
            labels = np.where(labels == IGNORE, 0, labels + 1).astype(np.uint8)
            Image.fromarray(labels).save(label_path(path))
            paths.append(path)
    return paths


def opened(file: Any) -> Image.Image:
    """Whatever a file claims to be, no other parser, and no external program, is started for it."""
    return Image.open(file, formats=["JPEG", "PNG"])


def label_path(path: Path) -> Path:
    """Where the labels of a loose image are."""
    return path.with_name(f"{path.stem}_labels.png")


class CroppedFiles(Dataset[dict[str, torch.Tensor]]):
    """Way A: one file after the other, everything on the CPU, as float."""

    def __init__(self, paths: list[Path], settings: CropSettings) -> None:
        self.paths, self.settings = paths, settings

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        settings, path = self.settings, self.paths[number]
        low, high = settings.ratio or (1.0, 1.0)
        short = int(settings.image_px * np.random.uniform(low, high))
        with opened(path) as file, opened(label_path(path)) as labels_file:
            height, width = short_side_size(file.height, file.width, short)
            image = np.asarray(file.convert("RGB").resize((width, height), Image.Resampling.BILINEAR))
            labels = np.asarray(labels_file.resize((width, height), Image.Resampling.NEAREST))
        image, labels = _random_crop(image, labels, settings)
        if np.random.random() < settings.flip_prob:
            image, labels = image[:, ::-1], labels[:, ::-1]
        crop_h, crop_w = settings.crop_px
        beyond = (0, crop_w - labels.shape[1], 0, crop_h - labels.shape[0])
        pixels = torch.from_numpy(image.copy()).permute(2, 0, 1).float()
        mean, std = torch.tensor(settings.mean), torch.tensor(settings.std)
        pixels = (pixels - mean[:, None, None]) / std[:, None, None]
        class_map = torch.nn.functional.pad(torch.from_numpy(labels.copy()), beyond)
        classes = torch.unique(class_map)
        classes = classes[classes > 0]
        masks = (class_map == classes[:, None, None]).float()
        return {
            "image": torch.nn.functional.pad(pixels, beyond),
            "masks": masks,
            "labels": classes.long() - 1,
        }


def _random_crop(
    image: np.ndarray, labels: np.ndarray, settings: CropSettings
) -> tuple[np.ndarray, np.ndarray]:
    """The first of up to C places with several classes, none of them too large; else the last."""
    for _ in range(settings.candidates):
        top, left = (
            np.random.randint(0, max(size - crop_px, 0) + 1)
            for size, crop_px in zip(labels.shape, settings.crop_px, strict=True)
        )
        window = (slice(top, top + settings.crop_px[0]), slice(left, left + settings.crop_px[1]))
        classes, counts = np.unique(labels[window], return_counts=True)
        counts = counts[classes > 0]
        if len(counts) > 1 and counts.max() / counts.sum() < settings.max_class_share:
            break
    return image[window], labels[window]


def files_and_floats(
    paths: list[Path], settings: CropSettings, batch_size: int, workers: int
) -> Iterable[Any]:
    """Way A."""
    files = CroppedFiles(paths, settings)
    return DataLoader(files, batch_size, shuffle=True, num_workers=workers, collate_fn=list, drop_last=True)


def files_and_threads(paths: list[Path], batch_size: int, threads: int) -> Iterator[Any]:
    """Way Q."""

    def load(batch: list[Path]) -> tuple[np.ndarray, np.ndarray, list[tuple[int, int]]]:
        images, labels = [], []
        for path in batch:
            with opened(path) as file, opened(label_path(path)) as labels_file:
                images.append(np.asarray(file.convert("RGB")))
                labels.append(np.asarray(labels_file))
        flat = np.concatenate([image.reshape(-1) for image in images])
        return (
            flat,
            np.concatenate([label.reshape(-1) for label in labels]),
            [label.shape for label in labels],
        )

    batches = [paths[i : i + batch_size] for i in range(0, len(paths) - batch_size + 1, batch_size)]
    return in_order(batches, load, threads, 2 * threads)


def _decode_sample(sample: dict[str, Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    image_format = "jpg" if "jpg" in sample else "png"
    if image_format == "jpg":
        pixels = simplejpeg.decode_jpeg(sample["jpg"], "RGB")
    else:
        with opened(io.BytesIO(sample["png"])) as file:
            pixels = np.asarray(file.convert("RGB"))
    runs = unpack_runs(sample["rle.zst"], *pixels.shape[:2])
    return pixels, runs.lengths, runs.owners, runs.labels


def _flat(samples: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]) -> tuple[torch.Tensor, ...]:
    pixels, lengths, owners, labels = zip(*samples, strict=True)
    flat = torch.from_numpy(np.concatenate([image.reshape(-1) for image in pixels]))
    sizes = torch.tensor([image.shape[:2] for image in pixels])
    return flat, sizes, *(torch.from_numpy(np.concatenate(parts)) for parts in (lengths, owners, labels))


def stock_webdataset(tars: list[str], batch_size: int, workers: int, epochs: int) -> Iterable[Any]:
    """Way D."""
    stages = wds.WebDataset(tars, shardshuffle=False, empty_check=False).repeat(epochs).map(_decode_sample)
    batched = stages.batched(batch_size, collation_fn=_flat, partial=False)
    batches: Iterable[Any] = wds.WebLoader(batched, batch_size=None, num_workers=workers)
    return batches


def cropped(batches: Iterable[Any], settings: CropSettings) -> Iterator[Any]:
    """The loader's batches, cropped on the CPU."""
    for batch in batches:
        yield crop(batch, draw_crops(batch, 0, settings), settings)


def ways(
    split: Split, settings: CropSettings, folder: Path, batch_size: int, num_batches: int, workers: int
) -> dict[str, Callable[[], Iterable[Any]]]:
    """By name, functions that begin a stream of `num_batches` batches; loose files go to `folder`."""
    paths = list(islice(cycle(write_loose(split, folder)), batch_size * num_batches))
    epochs = batch_size * num_batches  # more than anybody asks for, were there a single sample
    tars = [f"{split.base}/{shard.name}" for shard in split.manifest.shards]

    def load(decode: Callable[[EncodedBatch], RaggedBatch] | None = None) -> Iterator[Any]:
        with Loader(split, batch_per_rank=batch_size, threads=workers, decode=decode) as loader:
            yield from loader

    return {
        "A": partial(files_and_floats, paths, settings, batch_size, workers),
        "Q": partial(files_and_threads, paths, batch_size, workers),
        "D": partial(stock_webdataset, tars, batch_size, workers, epochs),
        "loader + crop": lambda: cropped(load(), settings),
        "loader": load,
        "loader - JPEG": partial(load, attrgetter("rest")),
    }


def compare(
    split: Split, settings: CropSettings, batch_size: int, num_batches: int, workers: int, rounds: int
) -> dict[str, Figures]:
    """Each way's figures, the best of `rounds`."""
    with TemporaryDirectory(prefix="maskshards-bench-") as folder:
        # Longer than is timed at both ends, so that no way runs dry while it is.
        streams = ways(split, settings, Path(folder), batch_size, num_batches + 2 * WARM_UP, workers)
        timings = {name: partial(time_stream, way, batch_size, num_batches) for name, way in streams.items()}
        return best_of(timings, rounds)
