"""`maskshards bench loader URL`: where a loader's time goes, one stage at a time and all together.

Each stage runs alone over the same batches, on as many threads as the loader has, its input prepared
beforehand: read (range reads and checksums), decompress (zstd and runs), decode (image to pixels), pack (flat
buffers), copy (to the device), crop. Then the loader with all its stages, and the loader with copy and crop.
The limit is the decoding of the same image bytes on the same threads with nothing around it; `of_limit` says
how much of it the loader reaches. The main figure is CPU milliseconds an image: wall time on a shared machine
moves by half, CPU time by a tenth.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np
import simplejpeg
import torch
import zstandard

from maskshards.shards.augment.crop import CropSettings, crop, draw_crops
from maskshards.shards.batch import RaggedBatch
from maskshards.shards.commands.interference import interference
from maskshards.shards.commands.stopwatch import Timing, best_of, time_stream, time_work
from maskshards.shards.decode.jpeg import decode_image
from maskshards.shards.decode.nvjpeg import GpuDecoder
from maskshards.shards.format.batch_runs import BatchRuns, unpack_batch
from maskshards.shards.format.manifest import Split, open_splits
from maskshards.shards.loading.batch_reader import BatchReader, Decoded
from maskshards.shards.loading.device_prefetcher import DevicePrefetcher
from maskshards.shards.loading.loader import Loader
from maskshards.shards.loading.ordered_map import MOST_AHEAD, in_order
from maskshards.shards.loading.selecting import select
from maskshards.shards.order.batch_plans import BatchPlan, TrainingPlans
from maskshards.shards.order.order import World, whole_number

Task = TypeVar("Task")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command to `parser`."""
    parser.add_argument("url", help="a split, or a folder of splits (its training split)")
    parser.add_argument("--batch", type=int, default=8, help="images a batch (default 8)")
    parser.add_argument("--batches", type=int, default=16, help="batches a round (default 16)")
    parser.add_argument("--rounds", type=int, default=3, help="the best of so many rounds counts (default 3)")
    parser.add_argument("--threads", type=int, default=2, help="threads of the loader (default 2)")
    parser.add_argument("--crop", type=int, default=512, help="side of the crop in pixels (default 512)")
    parser.add_argument("--photometric", default="none", help="preset of colour distortion (default none)")
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu"
    )
    parser.add_argument("--decode", choices=("cpu", "gpu"), default="cpu", help="where JPEGs are decoded")
    parser.add_argument(
        "--interference",
        action="store_true",
        help="measure how much the loader at 100 images/s slows a busy Python thread instead",
    )
    parser.add_argument(
        "--baselines", action="store_true", help="compare with files, threads and stock webdataset instead"
    )
    parser.add_argument(
        "--peers", action="store_true", help="compare with other loaders that are installed instead"
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure; facts as JSON values. ValueError or OSError where the split cannot be read."""
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: PyTorch finds no CUDA device here; say --device cpu")
    settings = CropSettings(crop_px=(args.crop, args.crop), image_px=args.crop, photometric=args.photometric)
    for name in ("batch", "batches", "rounds", "threads"):
        whole_number(getattr(args, name), f"--{name}", 1, MOST_AHEAD)
    # Of several splits the one that is trained on.
    split = max(open_splits(args.url), key=lambda split: split.manifest.split == "training")
    torch.set_num_threads(1)  # figures are compared thread for thread
    facts = {name: getattr(args, name) for name in ("batch", "batches", "threads", "crop", "photometric")}
    if args.baselines:
        from maskshards.shards.commands.baselines import compare

        return facts | {"ways": compare(split, settings, args.batch, args.batches, args.threads, args.rounds)}
    if args.peers:
        from maskshards.shards.commands.peers import compare_peers

        found, absent = compare_peers(split, args.batch, args.batches, args.threads, args.rounds)
        return facts | {"peers": found, "absent": absent}
    if args.interference:
        with Loader(split, batch_per_rank=args.batch, threads=args.threads) as loader:
            turns = max(1, args.rounds * 8)
            return facts | {"interference": interference(iter(loader), turns=turns)}
    decoder = GpuDecoder(device) if args.decode == "gpu" else None
    bench = Bench(split, args.batch, args.batches, args.threads, device, settings, decoder)
    best = best_of(bench.timings(), args.rounds)
    alone = [name for name in best if name not in ("loader", "all", "limit")]
    slowest = max(alone, key=lambda name: best[name]["wall_ms"])
    return facts | {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "stages": best,
        "bottleneck": slowest,
        "crop_ms_per_batch": best["crop"]["wall_ms"] * args.batch,
        "of_limit": best["limit"]["wall_ms"] / best["loader"]["wall_ms"],
        "of_limit_cpu": best["limit"]["cpu_ms"] / best["loader"]["cpu_ms"],
    }


def as_text(facts: dict[str, Any]) -> str:
    """A table, and what follows from it."""
    lines = [
        f"{facts['batches']} batches of {facts['batch']} images, {facts['threads']} threads or workers, "
        f"crop {facts['crop']}, colours {facts['photometric']}"
    ]
    if "ways" in facts:
        own = facts["ways"]["loader"]
        return "\n".join(
            lines
            + _table("way", facts["ways"])
            + [
                f"loader against {name}: {figures['cpu_ms'] / own['cpu_ms']:.1f} x less CPU an image, "
                f"{figures['wall_ms'] / own['wall_ms']:.1f} x the images a second"
                for name, figures in facts["ways"].items()
                if name != "loader"
            ]
        )
    if "peers" in facts:
        return "\n".join(lines + _peers_table(facts["peers"], facts["absent"]))
    if "interference" in facts:
        lines.append(
            "a Python thread is slowed by {slowed_by:.1%} by the loader at {images_per_second:.0f} images/s, "
            "beyond what a C-only load of the same {loader_cpu:.2f} CPUs does".format(**facts["interference"])
        )
        return "\n".join(lines)
    lines += _table("stage", facts["stages"])
    lines.append(f"bottleneck: {facts['bottleneck']}, the slowest stage alone")
    lines.append(
        f"crop: {facts['crop_ms_per_batch']:.2f} ms a batch on {facts['device']}, the copy not counted"
    )
    lines.append(
        f"the loader reaches {facts['of_limit']:.0%} of the images/s of bare decoding on the same threads "
        f"({facts['of_limit_cpu']:.0%} by CPU time)"
    )
    return "\n".join(lines)


def _peers_table(peers: dict[str, dict[str, float]], absent: dict[str, str]) -> list[str]:
    others = {name: figures for name, figures in peers.items() if name != "maskshards"}
    lines = _table("loader", peers)
    if others:
        own = peers["maskshards"]
        best_wall, best_cpu = (min(peer[name] for peer in others.values()) for name in ("wall_ms", "cpu_ms"))
        lines.append(
            f"against the best of each: {best_wall / own['wall_ms']:.2f} x the images a second, "
            f"{own['cpu_ms'] / best_cpu:.2f} of the CPU an image"
        )
    return lines + [f"{name} took no part: {reason}" for name, reason in absent.items()]


def _table(title: str, rows: dict[str, dict[str, float]]) -> list[str]:
    lines = [f"{title:<14}{'CPU ms/image':>14}{'wall ms/image':>15}{'images/s':>10}"]
    for name, figures in rows.items():
        rate = 1e3 / figures["wall_ms"]
        lines.append(f"{name:<14}{figures['cpu_ms']:>14.3f}{figures['wall_ms']:>15.3f}{rate:>10.0f}")
    return lines


class Bench:
    """The stages over one rank's first batches, each with its input at hand."""

    def __init__(
        self,
        split: Split,
        batch_size: int,
        num_batches: int,
        threads: int,
        device: torch.device,
        settings: CropSettings,
        decoder: GpuDecoder | None = None,
    ) -> None:
        selection = select(split)
        self.threads, self.device, self.settings = threads, device, settings
        self.batch_size = batch_size
        self.reader = BatchReader(selection, seed=0, pin=device.type == "cuda")
        self.loader = partial(
            Loader, selection, batch_per_rank=batch_size, threads=threads, pin=self.reader.pin, decode=decoder
        )
        plans = TrainingPlans(selection, 0, world=World(), batch_per_rank=batch_size, global_batch=batch_size)
        self.plans = list(plans(range(num_batches)))
        self.members = [self._read(plan) for plan in self.plans]
        self.samples = [self._samples(plan) for plan in self.plans]
        self.runs = [self._decompress(number) for number in range(num_batches)]
        self.batches = [self.reader.read(plan) for plan in self.plans]
        self.on_device = [batch.to(device) for batch in self.batches]
        self.decoder = decoder
        self.encoded = [self.reader.read_encoded(plan) for plan in self.plans] if decoder else []

    def timings(self) -> dict[str, Timing]:
        """By name, in the order of the work; each call does the work once over all batches."""
        numbers = range(len(self.plans))
        alone: dict[str, Callable[[], object]] = {
            "read": partial(self._on_threads, self.plans, self._read),
            "decompress": partial(self._on_threads, numbers, self._decompress),
            "decode": self._decode_on_device
            if self.decoder
            else partial(self._on_threads, numbers, self._decode),
            "pack": partial(self._on_threads, numbers, self._pack),
        }
        if self.device.type == "cuda":
            alone["copy"] = lambda: list(DevicePrefetcher(self.batches, self.device))
        alone["crop"] = lambda: list(self._cropped(self.on_device))
        timings: dict[str, Timing] = {
            name: partial(time_work, work, self.batch_size * len(self.plans)) for name, work in alone.items()
        }
        for name, stream in {"loader": self._loaded, "all": self._together}.items():
            timings[name] = partial(time_stream, stream, self.batch_size, len(self.plans))
        bare = (
            self._decode_on_device if self.decoder else partial(self._on_threads, numbers, self._decode_bare)
        )
        timings["limit"] = partial(time_work, bare, self.batch_size * len(self.plans))
        return timings

    def _on_threads(self, tasks: Sequence[Task], work: Callable[[Task], object]) -> None:
        for _ in in_order(tasks, work, self.threads, self.threads):
            pass

    def _read(self, plan: BatchPlan) -> list[tuple[bytes, bytes]]:
        return [self.reader.source.image_and_runs(row) for row in self.reader.rows(plan)]

    def _samples(self, plan: BatchPlan) -> list[Decoded]:
        return [
            self.reader.sample(row, np.empty((row.entry.height, row.entry.width, 3), np.uint8))
            for row in self.reader.rows(plan)
        ]

    def _decompress(self, number: int) -> BatchRuns:
        entries = [sample.row.entry for sample in self.samples[number]]
        return unpack_batch(
            [packed for _, packed in self.members[number]],
            [entry.height for entry in entries],
            [entry.width for entry in entries],
            zstandard.ZstdDecompressor(),
        )

    def _decode(self, number: int) -> None:
        for members, sample in zip(self.members[number], self.samples[number], strict=True):
            decode_image(members[0], sample.row.entry.image_format, sample.pixels)

    def _decode_bare(self, number: int) -> None:
        """The decoder alone, into memory that is there; what is no JPEG goes the usual way."""
        for members, sample in zip(self.members[number], self.samples[number], strict=True):
            if sample.row.entry.image_format == "jpg":
                simplejpeg.decode_jpeg(members[0], "RGB", buffer=sample.pixels)
            else:
                decode_image(members[0], sample.row.entry.image_format, sample.pixels)

    def _decode_on_device(self) -> None:
        for encoded in self.encoded:
            assert self.decoder is not None
            self.decoder(encoded)

    def _pack(self, number: int) -> None:
        self.reader.pack(
            self.plans[number], self.samples[number], self.runs[number], self.batches[number].pixels
        )

    def _cropped(self, batches: Iterable[RaggedBatch]) -> Iterator[None]:
        """Crops each batch and lets go of it, as a training step would."""
        for batch in batches:
            crop(batch, draw_crops(batch, 0, self.settings), self.settings)
            yield

    def _loaded(self) -> Iterator[RaggedBatch]:
        with self.loader() as loader:
            yield from loader

    def _together(self) -> Iterator[None]:
        return self._cropped(DevicePrefetcher(self._loaded(), self.device))
