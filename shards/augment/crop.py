"""From whole images to training crops, on whatever device the batch is.

Draw numbers first (`draw_crops`, on the host, a pure function of seed, epoch and sample key), then apply them
(`crop`, a pure function of batch and numbers): resize by a random ratio, crop at the first of C candidate
places that shows more than one class without one class filling it, flip, distort colours, normalise, pad. The
same code runs on CUDA and on the CPU. Nothing waits for the device: sizes are host numbers, and the choice of
the place, the only thing that depends on pixels, is made and used there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from maskshards.shards.augment.philox import key_digest, uniforms
from maskshards.shards.augment.photometric import COLOUR_NUMBERS, ColourDraws, distort, draw_colour
from maskshards.shards.augment.presets import IMAGENET_MEAN, IMAGENET_STD, JITTERS, PRESETS
from maskshards.shards.augment.rasterize import image_of, paint, window_counts
from maskshards.shards.augment.resize import fitted_size, normalise_, resize_planes, short_side_size
from maskshards.shards.augment.windows import (
    SourceTable,
    WindowPlan,
    Windows,
    plan_windows,
    source_arrays,
    stretches,
    upload,
)
from maskshards.shards.batch import VOID, CropBatch, RaggedBatch
from maskshards.shards.errors import SampleError

MAX_LABELS = VOID - 1
MOST_SIDE_PX = 1 << 15  # of a crop, and of the short side before it: more is a slip, and takes the memory

# What each stream of numbers is for; a new purpose takes a new number, so that old ones keep their meaning.
RATIO, PLACES, FLIP, COLOUR = range(4)


@dataclass(frozen=True)
class CropSettings:
    """How crops are made. Raises ValueError where a value makes no sense."""

    crop_px: tuple[int, int] = (512, 512)  # (height, width) of the crop
    image_px: int = 512  # the short side of the image at ratio 1; unused by jitter "fit"
    ratio: tuple[float, float] | None = (0.5, 2.0)  # the ratio is uniform in it; None is 1
    flip_prob: float = 0.5
    photometric: str = "reference"  # a preset of maskshards.shards.augment.photometric
    candidates: int = 10  # places tried
    max_class_share: float = 0.75  # a place is good if its largest class has less of the labelled pixels
    mean: tuple[float, float, float] = IMAGENET_MEAN  # 0..255
    std: tuple[float, float, float] = IMAGENET_STD
    jitter: str = (
        "short_side"  # or "fit": the ratio is relative to fitting inside the crop (large scale jitter)
    )

    def __post_init__(self) -> None:
        low, high = self.ratio or (1.0, 1.0)
        two = np.size(self.crop_px) == 2
        sides = two and 1 <= min(self.crop_px) <= max(self.crop_px) <= MOST_SIDE_PX
        checks = {
            "crop_px": (self.crop_px, f"(height, width), each from 1 to {MOST_SIDE_PX}", sides),
            "image_px": (self.image_px, f"1 to {MOST_SIDE_PX}", 1 <= self.image_px <= MOST_SIDE_PX),
            "ratio": (self.ratio, "0 < low <= high", 0 < low <= high),
            "flip_prob": (self.flip_prob, "from 0 to 1", 0 <= self.flip_prob <= 1),
            "photometric": (self.photometric, f"one of {', '.join(PRESETS)}", self.photometric in PRESETS),
            "candidates": (self.candidates, "at least 1", self.candidates >= 1),
            "max_class_share": (self.max_class_share, "above 0", self.max_class_share > 0),
            "std": (self.std, "above 0", min(self.std) > 0),
            "jitter": (self.jitter, f"one of {', '.join(JITTERS)}", self.jitter in JITTERS),
        }
        for name, (found, expected, holds) in checks.items():
            if not holds:
                raise ValueError(f"crop setting {name} is {found!r}; expected {expected}")


@dataclass(frozen=True, slots=True)
class CropDraws:
    """All random numbers of one batch of crops; no image sizes, so they can be drawn before any is read."""

    ratios: NDArray[np.float64]  # (B,)
    down: NDArray[np.float64]  # (B, C) place of each candidate as a fraction of the room there is, in [0, 1)
    right: NDArray[np.float64]  # (B, C)
    flips: NDArray[np.bool_]  # (B,)
    colour: ColourDraws | None  # None where the preset is "none"

    def rows(self) -> NDArray[np.float64]:
        """(B, N) float64: all of one sample's numbers a row, N the same for equal settings."""
        colour = [] if self.colour is None else [self.colour.table().T]
        return np.column_stack([self.ratios, self.down, self.right, self.flips, *colour]).astype(np.float64)


def draw_crops(batch: RaggedBatch, seed: int, settings: CropSettings) -> CropDraws:
    """Numbers for every sample, from (seed, its epoch, its key, purpose) alone.

    Only keys and epochs of the batch are looked at.
    """
    size, places = len(batch), 2 * settings.candidates
    purposes = (RATIO, PLACES, FLIP, COLOUR)
    digests = [key_digest(key) for key in batch.keys]
    drawn = uniforms(
        seed,
        batch.epochs * len(purposes),
        digests * len(purposes),
        np.repeat(purposes, size).tolist(),
        max(places, COLOUR_NUMBERS),
    ).reshape(len(purposes), size, -1)
    low, high = settings.ratio or (1.0, 1.0)
    preset = PRESETS[settings.photometric]
    return CropDraws(
        ratios=low + (high - low) * drawn[RATIO, :, 0],
        down=drawn[PLACES, :, 0:places:2],
        right=drawn[PLACES, :, 1:places:2],
        flips=drawn[FLIP, :, 0] < settings.flip_prob,
        colour=None if preset is None else draw_colour(drawn[COLOUR, :, :COLOUR_NUMBERS], preset),
    )


@torch.no_grad()
def crop(batch: RaggedBatch, draws: CropDraws, settings: CropSettings) -> CropBatch:
    """One crop of every image, on the batch's device.

    The image is Pillow's bilinear resize of the whole image, cropped, within 2 grey levels before colour and
    normalisation; the owner map is Pillow's nearest resize of the whole map, cropped, exactly. Images smaller
    than the crop lie at its top left; beyond them the crop is 0 after normalisation, VOID in the owner map.
    `maskshards.shards.augment.targets` makes class ids, masks or boxes of the owner map.
    Raises SampleError where an image has more than 254 labels.
    """
    _check_labels(batch)
    device = batch.pixels.device
    plan = _plan(batch, draws, settings)
    windows, labels, inner, colour = _to_device(batch, draws, plan, device)
    counts = window_counts(batch.run_ends, batch.run_owners, windows, labels.shape[1] + 1)
    rows, columns = _chosen_pixels(windows, choose(counts, settings.max_class_share), settings.crop_px)
    owner_map = _label_crops(batch, windows, rows, columns)
    images = _image_crops(batch, plan, windows.resized_widths, rows, columns)
    preset = PRESETS[settings.photometric]
    if preset is not None and draws.colour is not None:
        distort(images, colour, draws.colour, preset, inner)
    for part in stretches(len(batch), device):
        normalise_(images[part], settings.mean, settings.std)
    for i, (height, width) in enumerate(plan.inner):
        for beyond in (images[i, :, height:], images[i, :, :, width:]):
            if beyond.numel():
                beyond.zero_()
        for void in (owner_map[i, height:], owner_map[i, :, width:]):
            if void.numel():
                void.fill_(VOID)
    largest = max((own[-1] for own in batch.labels if own), default=-1)  # each ascends
    return CropBatch(images, owner_map, labels.long(), batch.keys, batch.positions, largest)


def _check_labels(batch: RaggedBatch) -> None:
    for key, labels in zip(batch.keys, batch.labels, strict=True):
        if len(labels) > MAX_LABELS:
            raise SampleError(
                f"{len(labels)} classes in one image; crops number them in one byte and hold at most "
                f"{MAX_LABELS}. Merge classes, or split the image, when the shards are built",
                key=key,
            )


def _plan(batch: RaggedBatch, draws: CropDraws, settings: CropSettings) -> WindowPlan:
    resized = []
    for height, width, ratio in zip(batch.heights, batch.widths, draws.ratios.tolist(), strict=True):
        if settings.jitter == "fit":
            resized.append(fitted_size(height, width, settings.crop_px, ratio))
        else:
            resized.append(short_side_size(height, width, max(1, int(settings.image_px * ratio))))
    return plan_windows(resized, settings.crop_px, draws.down, draws.right)


def _to_device(
    batch: RaggedBatch, draws: CropDraws, plan: WindowPlan, device: torch.device
) -> tuple[Windows, Tensor, Tensor, Tensor]:
    """(windows, labels (B, K) int32, inner sizes (B, 2) int32, colour (5, B) float32), in one copy."""
    areas = np.multiply(batch.heights, batch.widths)
    rows = source_arrays(batch.heights, [h for h, _ in plan.resized])
    columns = source_arrays(batch.widths, [w for _, w in plan.resized])
    labels = np.full((len(batch), max(1, *map(len, batch.labels))), -1, np.int32)
    for i, own in enumerate(batch.labels):
        labels[i, : len(own)] = own
    small = np.empty((6, len(batch)), np.int32)
    small[0], small[1], small[2] = np.cumsum(areas) - areas, batch.widths, [w for _, w in plan.resized]
    small[3], small[4], small[5] = batch.run_offsets[:-1], np.diff(batch.run_offsets), draws.flips
    inner = np.array(plan.inner, np.int32)
    colour = np.zeros((5, len(batch)), np.float32) if draws.colour is None else draws.colour.table()
    on_device = upload([small, inner, plan.tops, plan.lefts, labels, colour, *rows, *columns], device)
    starts, widths, resized_widths, run_starts, run_counts, flips = on_device[0]
    inner_sizes, tops, lefts, label_ids, colour_table, *tables = on_device[1:]
    windows = Windows(
        pixel_starts=starts,
        widths=widths,
        resized_widths=resized_widths,
        run_starts=run_starts.long(),
        run_counts=run_counts.long(),
        inner_heights=inner_sizes[:, 0],
        inner_widths=inner_sizes[:, 1],
        flips=flips,
        tops=tops,
        lefts=lefts,
        rows=SourceTable(*tables[:4]),
        columns=SourceTable(*tables[4:]),
    )
    return windows, label_ids, inner_sizes, colour_table


def choose(counts: Tensor, max_class_share: float) -> Tensor:
    """(B,) int64: the first candidate with several classes and none beyond `max_class_share`; else the last.

    `counts` (B, C, 1 + K): pixels of each owner in each candidate; owner 0, no class, does not count.
    """
    labelled = counts[..., 1:]
    share = labelled.amax(-1).double() / labelled.sum(-1).clamp_min(1)
    good = ((labelled > 0).sum(-1) > 1) & (share < max_class_share)
    good[:, -1] = True
    return (good * torch.arange(good.shape[1], 0, -1, device=good.device)).argmax(1)


def _chosen_pixels(windows: Windows, chosen: Tensor, crop_px: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Rows (B, h) and columns (B, w) of the resized image that each crop shows; padding repeats one."""
    y, x = (torch.arange(size, dtype=torch.int32, device=chosen.device) for size in crop_px)
    last_row, last_column = windows.inner_heights[:, None] - 1, windows.inner_widths[:, None] - 1
    flipped = torch.where(windows.flips[:, None] > 0, last_column - x, x)
    rows = windows.tops.gather(1, chosen[:, None]) + torch.minimum(y, last_row)
    return rows, windows.lefts.gather(1, chosen[:, None]) + torch.minimum(flipped.clamp_min(0), last_column)


def _label_crops(batch: RaggedBatch, windows: Windows, rows: Tensor, columns: Tensor) -> Tensor:
    """(B, h, w) int16: index into the image's labels, VOID where there is no class."""
    # Owner 0 wraps round to 255, which is VOID; owner k becomes the index k - 1.
    painted = paint(batch.run_ends, batch.run_owners - 1, batch.pixels.numel() // 3)
    y = windows.rows.sources[windows.rows.starts[:, None] + rows]
    x = windows.columns.sources[windows.columns.starts[:, None] + columns]
    first = windows.pixel_starts[:, None] + y * windows.widths[:, None]
    shape = (len(batch), rows.shape[1], columns.shape[1])
    owner_map = torch.empty(shape, dtype=torch.int16, device=painted.device)
    for part in stretches(len(batch), painted.device):
        places = first[part, :, None] + x[part, None, :]
        owner_map[part].view(-1).copy_(painted.index_select(0, places.view(-1)))
    return owner_map


def _image_crops(
    batch: RaggedBatch, plan: WindowPlan, widths: Tensor, rows: Tensor, columns: Tensor
) -> Tensor:
    """(B, 3, h, w) float32, whole grey levels: each image resized as a whole, then its window taken."""
    shape = (len(batch), 3, rows.shape[1], columns.shape[1])
    crops = torch.empty(shape, dtype=torch.float32, device=rows.device)
    for part in stretches(len(batch), rows.device):
        places = rows[part, :, None].long() * widths[part, None, None] + columns[part, None, :]
        for i, place in zip(range(len(batch))[part], places.flatten(1), strict=True):
            planes = resize_planes(image_of(batch, i), *plan.resized[i]).view(3, -1)
            target, index = crops[i].view(3, -1), place.expand(3, -1)
            if planes.dtype == crops.dtype:  # everywhere but on the CPU, whose planes are bytes
                torch.gather(planes, 1, index, out=target)
            else:
                target.copy_(planes.gather(1, index))
    return crops if rows.device.type == "cpu" else crops.round_()
