"""Colour distortion of crops whose values are whole grey levels, 0..255.

In order: brightness, contrast (if its coin says early), saturation, hue, contrast (if late); each with
probability 1/2, each clipped and brought back to whole levels, as code that works on 8-bit images does. The
presets differ in strength and in what "brightness", "contrast" and "saturation" mean:

* "reference": +-32 levels, contrast about black, saturation a blend with grey, hue anywhere on the circle
  (DINOv3's segmentation recipe, whose saturation and hue are torchvision's).
* "mmseg": the same with saturation in HSV and hue +-18 of 180 steps (MMSegmentation, after SSD).
* "eomt": brightness a factor, contrast about the crop's mean grey, saturation a blend with grey, hue +-0.05
  turns (EoMT; there the mean is taken over the whole image, before it is cropped).
* "none": nothing.

Parameters are neutral where the coin said no, and a neutral step changes nothing, so steps may run on whole
batches.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from maskshards.shards.augment.presets import PRESETS, Photometric
from maskshards.shards.augment.windows import stretches

__all__ = ["COLOUR_NUMBERS", "PRESETS", "ColourDraws", "Photometric", "distort", "draw_colour"]

GREY = (0.2989, 0.587, 0.114)  # luma as torchvision weighs it: a grey pixel's is just below its level
COLOUR_NUMBERS = 9  # uniforms that one sample's distortion takes


@dataclass(frozen=True, slots=True)
class ColourDraws:
    """One sample's parameters a row; neutral where a coin said no."""

    brightness: NDArray[np.float32]  # (B,) levels to add (neutral 0), or a factor (neutral 1)
    contrast: NDArray[np.float32]  # (B,) factor
    contrast_early: NDArray[np.bool_]  # (B,) before saturation and hue, else after them
    saturation: NDArray[np.float32]  # (B,) factor
    hue: NDArray[np.float32]  # (B,) turns, neutral 0

    def table(self) -> NDArray[np.float32]:
        """(5, B) float32: the rows that `distort` takes, brightness, early and late contrast, ..."""
        early = np.where(self.contrast_early, self.contrast, np.float32(1))
        late = np.where(self.contrast_early, np.float32(1), self.contrast)
        return np.stack([self.brightness, early, self.saturation, self.hue, late]).astype(np.float32)


def draw_colour(uniform: NDArray[np.float64], preset: Photometric) -> ColourDraws:
    """Parameters from (B, COLOUR_NUMBERS) numbers in [0, 1): a coin and an amount a step, one of order."""
    coins = uniform[:, :8:2] < 0.5
    amounts = uniform[:, 1:8:2]

    def between(step: int, low: float, high: float, neutral: float) -> NDArray[np.float32]:
        return np.where(coins[:, step], low + (high - low) * amounts[:, step], neutral).astype(np.float32)

    centre = 0.0 if preset.additive else 1.0
    return ColourDraws(
        brightness=between(0, centre - preset.brightness, centre + preset.brightness, centre),
        contrast=between(1, *preset.contrast, 1.0),
        contrast_early=uniform[:, 8] < 0.5,
        saturation=between(2, *preset.saturation, 1.0),
        hue=between(3, -preset.hue, preset.hue, 0.0),
    )


def distort(images: Tensor, table: Tensor, draws: ColourDraws, preset: Photometric, inside: Tensor) -> None:
    """Distort `images` (B, 3, H, W) float32 of whole levels in place.

    `table` is `draws.table()` on the images' device; `inside` (B, 2) their counts of rows and columns that
    are not padding, which only the mean grey needs. `draws` itself stays on the host and tells which steps
    can be left out.
    """
    early = draws.contrast_early
    moved = draws.contrast != 1
    brightness, contrast = (_add, _scale) if preset.additive else (_scale, _scale_about_grey)
    steps: list[tuple[Callable[..., None], NDArray[np.bool_]]] = [
        (brightness, draws.brightness != (0 if preset.additive else 1)),
        (contrast, moved & early),
        (_saturate_hsv if preset.hsv_saturation else _saturate_grey, draws.saturation != 1),
        (_rotate_hue, draws.hue != 0),
        (contrast, moved & ~early),
    ]
    for row, (step, active) in enumerate(steps):
        for part in stretches(len(active), images.device, active):
            step(images[part], table[row, part, None, None, None], inside[part])


def _add(images: Tensor, amount: Tensor, inside: Tensor) -> None:
    images.add_(amount).clamp_(0, 255).floor_()


def _scale(images: Tensor, factor: Tensor, inside: Tensor) -> None:
    images.mul_(factor).clamp_(0, 255).floor_()


def _grey(images: Tensor) -> Tensor:
    """(B, 1, H, W) luma in whole levels, cut off as code that works on 8-bit images does."""
    red, green, blue = images.split(1, dim=1)
    grey: Tensor = (red * GREY[0]).add_(green, alpha=GREY[1]).add_(blue, alpha=GREY[2])
    return grey.floor_()


def _scale_about_grey(images: Tensor, factor: Tensor, inside: Tensor) -> None:
    height, width = images.shape[-2:]
    rows = torch.arange(height, device=images.device) < inside[:, :1]
    columns = torch.arange(width, device=images.device) < inside[:, 1:]
    mask = (rows[:, :, None] & columns[:, None, :])[:, None]
    mean = (_grey(images) * mask).sum((2, 3), keepdim=True) / inside.prod(1)[:, None, None, None]
    images.mul_(factor).add_(mean * (1 - factor)).clamp_(0, 255).floor_()


def _saturate_grey(images: Tensor, factor: Tensor, inside: Tensor) -> None:
    """Blend with grey by `factor`: 0 is grey, 1 the image, more than 1 goes beyond it."""
    grey = _grey(images)
    images.mul_(factor).add_(grey.mul_(1 - factor)).clamp_(0, 255).floor_()


def _value_and_chroma(channels: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """The largest channel, and by how much it exceeds the smallest; pairwise, quicker than a reduction."""
    red, green, blue = channels
    value = torch.maximum(red, green)
    torch.maximum(value, blue, out=value)
    smallest = torch.minimum(red, green)
    torch.minimum(smallest, blue, out=smallest)
    return value, torch.sub(value, smallest, out=smallest)


def _saturate_hsv(images: Tensor, factor: Tensor, inside: Tensor) -> None:
    """Multiply S = (max - min) / max, at most 1: each channel moves along its way to max.

    Hue and value are kept.
    """
    value, chroma = _value_and_chroma(images.split(1, dim=1))
    # max / (max - min) is the factor that brings S to 1; for greys it is infinite or 0 / 0, and 0 stays 0
    # anyway.
    factor = torch.minimum(factor, value / chroma.clamp_min(1))
    images.sub_(value).mul_(factor).add_(value).round_()


def _rotate_hue(images: Tensor, turns: Tensor, inside: Tensor) -> None:
    """Rotate the hue of HSV by `turns`; value and saturation keep."""
    red, green, blue = images.unbind(1)
    value, chroma = _value_and_chroma((red, green, blue))
    divisor = chroma.clamp_min(1)
    sextant = torch.where(
        value == red,
        (green - blue).div_(divisor),
        torch.where(value == green, (blue - red).div_(divisor).add_(2), (red - green).div_(divisor).add_(4)),
    )
    turned = sextant.div_(6).add_(turns[..., 0]).add_(1)  # turns, positive
    for channel, start in enumerate((5, 3, 1)):
        # f(n) = V - C * clamp(min(k, 4 - k), 0, 1), k = (n + 6 hue) mod 6; min(k, 4 - k) = 2 - |k - 2|
        ramp = (turned + start / 6).frac_().sub_(1 / 3).abs_().mul_(-6).add_(2).clamp_(0, 1)
        torch.sub(value, ramp.mul_(chroma), out=images[:, channel]).round_()
