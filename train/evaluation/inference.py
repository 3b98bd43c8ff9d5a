"""From an image of any size to its label map: whole or by sliding windows, with test-time augmentation.

The rules are those of facebookresearch/dinov3. An image is resized so that its short side has `image_px`
pixels; windows of `crop_px` start every `stride_px`, the last ones shifted back inside; scores are averaged
where windows overlap, resized to the wanted size (bilinear), flipped back where the input was flipped,
turned into shares by a softmax over the classes (for query heads too, whose scores are bounded already: the
published figures were made so), averaged over the variants, and the largest wins.

We differ where the reference cannot serve: windows of one size go through the model together, also those of
several images and of the flipped copy; sums, averages and argmax stay on the device, in float32; a stride
is never longer than the window (where a small image shrinks the window the reference would leave gaps); and
"whole" keeps the shape of the image, where the reference squeezes it to 512 x 512.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from maskshards.shards.augment.presets import IMAGENET_MEAN, IMAGENET_STD
from maskshards.shards.augment.resize import normalise, resize_image, short_side_size
from maskshards.train.model.segmenter import Segmenter

STRIP_BYTES = 256 << 20  # largest score map at output size that is held at once
LONGEST = 16  # times its short side: a longer image is a strip and keeps its size where it would grow


class NonFiniteScores(ValueError):
    """The model answered NaN or infinity, so there is no largest score."""


@dataclass(frozen=True, slots=True)
class InferenceSettings:
    """How an image becomes a label map."""

    mode: str = "slide"  # slide | whole
    image_px: int | None = None  # short side that the model sees; None: as the image comes
    crop_px: int = 512  # window side (slide)
    stride_px: int = 341  # between window starts (slide)
    ratios: tuple[float, ...] = (1.0,)  # sizes to average over, times image_px
    flip: bool = False  # average over the mirrored image too
    mean: tuple[float, ...] = IMAGENET_MEAN  # on the 0..255 scale
    std: tuple[float, ...] = IMAGENET_STD
    windows_at_once: int = 4

    def __post_init__(self) -> None:
        if self.mode not in ("slide", "whole"):
            raise ValueError(f"eval.mode is {self.mode!r}, expected 'slide' or 'whole'")
        if not 1 <= self.stride_px <= self.crop_px:
            raise ValueError(
                f"eval.stride is {self.stride_px} with windows of {self.crop_px} pixels: a stride must be at "
                "least 1 and at most the window, else pixels between windows are never scored"
            )
        if not self.ratios or min(self.ratios) <= 0:
            raise ValueError(f"the sizes to average over must be positive numbers, not {list(self.ratios)}")
        if self.image_px is not None and self.image_px < 1:
            raise ValueError(f"transforms.eval.img_size must be at least 1 pixel, not {self.image_px}")
        if self.windows_at_once < 1:
            raise ValueError(f"windows_at_once must be at least 1, not {self.windows_at_once}")


def variant_sizes(height: int, width: int, settings: InferenceSettings) -> list[tuple[int, int]]:
    """(height, width) px of the image at each ratio: short side int(image_px * ratio).

    Below 1 it is rounded up to a multiple of 32. What is longer than LONGEST short sides is not enlarged:
    20,000 x 2 px would become 5,120,000.
    """
    base = min(height, width) if settings.image_px is None else settings.image_px
    shorts = [int(base * ratio) for ratio in settings.ratios]
    shorts = [
        -(-px // 32) * 32 if ratio < 1 else px for px, ratio in zip(shorts, settings.ratios, strict=True)
    ]
    if max(height, width) > LONGEST * min(height, width):
        shorts = [min(px, min(height, width)) for px in shorts]
    return [short_side_size(height, width, max(px, 1)) for px in shorts]


def windows(height: int, width: int, crop_px: int, stride_px: int) -> list[tuple[int, int, int, int]]:
    """(top, left, height, width) of every window, row by row. All have one size and cover every pixel."""
    if crop_px > height and crop_px > width:
        crop_px = min(height, width)
    tall, wide = min(crop_px, height), min(crop_px, width)
    return [
        (top, left, tall, wide)
        for top in _starts(height, tall, min(stride_px, crop_px))
        for left in _starts(width, wide, min(stride_px, crop_px))
    ]


def _starts(size: int, window: int, stride: int) -> list[int]:
    count = max(size - window + stride - 1, 0) // stride + 1
    return [min(k * stride, size - window) for k in range(count)]


@torch.no_grad()
def score_maps(
    segmenter: Segmenter,
    images: Sequence[Tensor],
    settings: InferenceSettings,
    autocast_dtype: torch.dtype | None = None,
) -> list[Tensor]:
    """Scores (C, h, w) float32 for each normalised image (3, h, w), at the image's own size.

    Windows of one size are batched, across images too. With an `autocast_dtype` of 16 bits the model runs
    under autocast.
    """
    halved = autocast_dtype in (torch.bfloat16, torch.float16)
    places: dict[tuple[int, int], list[tuple[int, int, int]]] = {}  # window size -> (image, top, left)
    for number, image in enumerate(images):
        _, height, width = image.shape
        grid = [(0, 0, height, width)]
        if settings.mode == "slide":
            grid = windows(height, width, settings.crop_px, settings.stride_px)
        for top, left, tall, wide in grid:
            places.setdefault((tall, wide), []).append((number, top, left))
    sums = [image.new_zeros(segmenter.num_classes, *image.shape[1:], dtype=torch.float32) for image in images]
    counts = [image.new_zeros(image.shape[1:], dtype=torch.float32) for image in images]
    for (tall, wide), where in places.items():
        for first in range(0, len(where), settings.windows_at_once):
            chunk = where[first : first + settings.windows_at_once]
            batch = torch.stack(
                [images[n][:, top : top + tall, left : left + wide] for n, top, left in chunk]
            )
            with torch.autocast(batch.device.type, autocast_dtype or torch.bfloat16, enabled=halved):
                scores = segmenter.scores(batch)
            for (number, top, left), score in zip(chunk, scores, strict=True):
                sums[number][:, top : top + tall, left : left + wide] += score
                counts[number][top : top + tall, left : left + wide] += 1
    return [total.div_(count) for total, count in zip(sums, counts, strict=True)]


@torch.no_grad()
def label_maps(
    segmenter: Segmenter,
    images: Sequence[Tensor],
    settings: InferenceSettings,
    autocast_dtype: torch.dtype | None = None,
    dtype: torch.dtype = torch.int64,
) -> list[Tensor]:
    """The most likely class of every pixel, (H, W) of `dtype`, for each image (H, W, 3) uint8 RGB.

    Everything happens on the device of the images. Raises NonFiniteScores rather than guess.
    """
    sizes = [(image.shape[0], image.shape[1]) for image in images]
    variants = _scores_of_variants(segmenter, images, settings, autocast_dtype)
    if is_single(settings):  # the softmax would not move the largest
        return [_winners(scores, sizes[number], dtype) for number, _, scores in variants]
    shares = [_zeros(segmenter.num_classes, image) for image in images]
    for number, mirrored, scores in variants:
        for rows, strip in _strips(scores, sizes[number]):
            shares[number][:, rows] += (strip.flip(-1) if mirrored else strip).softmax(dim=0)
    return [_winners(total, size, dtype) for total, size in zip(shares, sizes, strict=True)]


@torch.no_grad()
def probability_maps(
    segmenter: Segmenter,
    images: Sequence[Tensor],
    settings: InferenceSettings,
    autocast_dtype: torch.dtype | None = None,
) -> list[Tensor]:
    """(C, H, W) float32 for each image (H, W, 3) uint8 RGB; sums to 1 at a pixel, the largest is its label.

    Of class scores the softmax; of a query head, whose scores are sums of products of probabilities, each
    class's share of the sum; over several variants the mean of the softmaxes, by which they are labelled.
    """
    sizes = [(image.shape[0], image.shape[1]) for image in images]
    totals = [_zeros(segmenter.num_classes, image) for image in images]
    bounded = is_single(settings) and segmenter.decoder.rules.scores_are_shares
    for number, mirrored, scores in _scores_of_variants(segmenter, images, settings, autocast_dtype):
        for rows, strip in _strips(scores, sizes[number]):
            strip = strip.flip(-1) if mirrored else strip
            totals[number][:, rows] += strip if bounded else strip.softmax(dim=0)
    for total in totals:
        check_finite(total.sum())
        total.div_(total.sum(dim=0).clamp_(min=torch.finfo(total.dtype).tiny))
    return totals


def _zeros(num_classes: int, image: Tensor) -> Tensor:
    """(C, H, W) float32 beside an image (H, W, 3)."""
    return image.new_zeros(num_classes, *image.shape[:2], dtype=torch.float32)


def is_single(settings: InferenceSettings) -> bool:
    """Whether an image is looked at once only, without test-time augmentation."""
    return len(settings.ratios) == 1 and not settings.flip


def _scores_of_variants(
    segmenter: Segmenter,
    images: Sequence[Tensor],
    settings: InferenceSettings,
    autocast_dtype: torch.dtype | None,
) -> Iterator[tuple[int, bool, Tensor]]:
    """(number of the image, whether it was mirrored, its scores (C, h, w)) for each ratio and flip."""
    variants = [variant_sizes(image.shape[0], image.shape[1], settings) for image in images]
    for ratio in range(len(settings.ratios)):
        seen = [
            normalise(resize_image(image, *variants[i][ratio]), settings.mean, settings.std)
            for i, image in enumerate(images)
        ]
        if settings.flip:
            seen += [image.flip(-1) for image in seen]
        for i, scores in enumerate(score_maps(segmenter, seen, settings, autocast_dtype)):
            yield i % len(images), i >= len(images), scores


def _winners(scores: Tensor, size: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """Argmax over classes of (C, h, w) scores resized to `size`, (H, W) of `dtype`."""
    winners = torch.empty(size, dtype=dtype, device=scores.device)
    for rows, strip in _strips(scores, size):
        best, places = strip.max(dim=0)
        winners[rows] = places.to(dtype)
        check_finite(best)
    return winners


def check_finite(values: Tensor) -> None:
    """Raise NonFiniteScores unless all values are finite."""
    if not bool(values.isfinite().all()):
        raise NonFiniteScores(
            "the model's scores hold NaN or infinity; are the weights sound, and does it stay finite "
            "with model_dtype=FLOAT32?"
        )


def _strips(scores: Tensor, size: tuple[int, int]) -> Iterator[tuple[slice, Tensor]]:
    """`scores` (C, h, w) resized to `size`, a few rows at a time, as (rows, (C, len(rows), W)).

    A strip has at most STRIP_BYTES (but one row at least), so that a huge photograph costs no huge score map.
    Values are those of F.interpolate(mode="bilinear", align_corners=False) on the whole.
    """
    classes, height, width = scores.shape
    tall, wide = size
    step = max(STRIP_BYTES // (classes * wide * 4), 1)
    if step >= tall:
        whole = scores if (height, width) == size else _bilinear(scores, size)
        yield slice(0, tall), whole
        return
    for top in range(0, tall, step):
        rows = torch.arange(top, min(top + step, tall), device=scores.device)
        source = ((rows + 0.5) * (height / tall) - 0.5).clamp(min=0)
        above = source.long().clamp(max=height - 1)
        below = (above + 1).clamp(max=height - 1)
        mixed = torch.lerp(scores[:, above], scores[:, below], (source - above)[:, None].to(scores.dtype))
        yield slice(top, top + len(rows)), _bilinear(mixed, (len(rows), wide))


def _bilinear(scores: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(scores[None], size, mode="bilinear", align_corners=False)[0]
