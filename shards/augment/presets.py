"""The named choices of augmentation and their numbers, known without loading torch."""

from __future__ import annotations

from dataclasses import dataclass

# ImageNet's means and standard deviations, on the 0..255 scale.
IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)

# The published range of large scale jitter (Ghiasi et al. 2021, arXiv 2012.07177), for jitter "fit": there a
# ratio of 1 is fitting inside the crop, as in that paper.
LSJ_RATIO = (0.1, 2.0)
JITTERS = ("short_side", "fit")


@dataclass(frozen=True, slots=True)
class Photometric:
    """Strength and meaning of a distortion; every step has probability 1/2."""

    brightness: float  # half width: in levels if additive, else about a factor of 1
    contrast: tuple[float, float]  # factor
    saturation: tuple[float, float]  # factor
    hue: float  # half width, in turns of the colour circle
    additive: bool  # brightness adds levels, contrast is about black; else a factor, and about the mean grey
    hsv_saturation: bool  # scales S of HSV; else blends with grey


PRESETS: dict[str, Photometric | None] = {
    "reference": Photometric(32, (0.5, 1.5), (0.5, 1.5), 0.5, additive=True, hsv_saturation=False),
    "mmseg": Photometric(32, (0.5, 1.5), (0.5, 1.5), 18 / 180, additive=True, hsv_saturation=True),
    "eomt": Photometric(0.125, (0.5, 1.5), (0.5, 1.5), 0.05, additive=False, hsv_saturation=False),
    "none": None,
}
