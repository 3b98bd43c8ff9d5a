"""Colour distortion against a slow twin: one pixel at a time, colorsys for HSV."""

import colorsys
from dataclasses import replace

import numpy as np
import pytest
import torch

from maskshards.shards.augment.photometric import COLOUR_NUMBERS, PRESETS, ColourDraws, distort, draw_colour

NEUTRAL_ADD = ColourDraws(
    *(np.full(1, v, np.float32) for v in (0, 1)),
    np.array([True]),
    *(np.full(1, v, np.float32) for v in (1, 0)),
)


def with_values(count=1, additive=True, **values):
    draws = replace(NEUTRAL_ADD, brightness=np.full(1, 0 if additive else 1, np.float32))
    draws = replace(
        draws,
        **{name: np.array([value]).astype(getattr(draws, name).dtype) for name, value in values.items()},
    )
    return ColourDraws(*(np.repeat(getattr(draws, name), count) for name in ColourDraws.__slots__))


def run(images, draws, preset, inside=None):
    images = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).float().clone()
    if inside is None:
        inside = [images.shape[-2:]] * len(images)
    distort(images, torch.from_numpy(draws.table()), draws, preset, torch.tensor(inside))
    return images.permute(0, 2, 3, 1).numpy()


def whole(value):
    return np.clip(value, 0, 255).astype(np.uint8).astype(np.float32)  # as 8-bit code does: clip, then cut


def grey_levels(image):
    """torchvision's grey of a uint8 image in integers: floor(0.2989 R + 0.587 G + 0.114 B), (..., 1)."""
    return (image.astype(np.int64) @ np.array([2989, 5870, 1140]) // 10_000)[..., None]


def adjust_saturation(image, factor):
    """torchvision's operator of that name on uint8: a blend with the floored grey, clipped and floored."""
    return np.floor(np.clip(image.astype(float) * factor + grey_levels(image) * (1 - factor), 0, 255))


def rotated(pixel, turns):
    """One pixel of whole levels with its hue turned, by colorsys."""
    h, s, v = colorsys.rgb_to_hsv(*(pixel / 255))
    return np.round(255 * np.array(colorsys.hsv_to_rgb((h + turns) % 1, s, v)))


def twin_additive(pixel, draws, i, hsv_saturation):
    """The steps of "reference" and "mmseg" on one pixel (three whole levels)."""

    def contrast(p):
        return whole(np.float32(p) * draws.contrast[i])

    pixel = whole(np.float32(pixel) + draws.brightness[i])
    if draws.contrast_early[i]:
        pixel = contrast(pixel)
    factor = float(draws.saturation[i])
    if hsv_saturation:
        h, s, v = colorsys.rgb_to_hsv(*(pixel.astype(float) / 255))
        pixel = np.round(255 * np.array(colorsys.hsv_to_rgb(h, min(1.0, s * factor), v)))
    elif factor != 1:
        pixel = adjust_saturation(pixel, factor)
    if draws.hue[i] != 0:
        pixel = rotated(pixel, float(draws.hue[i]))
    return pixel if draws.contrast_early[i] else contrast(pixel)


@pytest.mark.parametrize(("name", "hsv_saturation"), [("reference", False), ("mmseg", True)])
def test_additive_presets_equal_the_slow_twin(name, hsv_saturation):
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (24, 6, 7, 3)).astype(np.float32)
    images[:, 0] = images[:, 0, :, :1]  # greys
    images[:, 1, :, 1] = images[:, 1, :, 0]  # two channels tie
    draws = draw_colour(random.random((24, COLOUR_NUMBERS)), PRESETS[name])
    expected = np.array(
        [
            [[twin_additive(p, draws, i, hsv_saturation) for p in row] for row in image]
            for i, image in enumerate(images)
        ]
    )
    got = run(images, draws, PRESETS[name])
    difference = np.abs(got - expected)
    # A level more or less where the twin's double precision rounds the other way at a half; contrast may
    # widen it.
    assert difference.max() <= 2
    assert (difference > 0).mean() < 0.01


@pytest.mark.parametrize("name", ["reference", "eomt"])
@pytest.mark.parametrize(
    ("factor", "differing"),  # share of values that may be a level off
    [
        *[(quarter / 4, 0.0) for quarter in range(9)],  # float32 is exact in quarters
        *[(tenth / 10, 0.12) for tenth in range(5, 16)],  # whole in theory: float32 goes either way
        *[(factor, 0.01) for factor in (0.51234, 0.61234, 0.97531, 1.1357, 1.3377, 1.4999)],
    ],
)
def test_saturation_is_the_blend_of_the_published_transforms(name, factor, differing):
    random = np.random.default_rng(5)
    image = random.integers(0, 256, (1, 64, 64, 3)).astype(np.float32)
    image[0, :4] = image[0, :4, :, :1]  # greys, whose luma is floored to the level below
    preset = PRESETS[name]
    got = run(image, with_values(additive=preset.additive, saturation=factor), preset)
    difference = np.abs(got - adjust_saturation(image, factor))
    assert difference.max() <= (1 if differing else 0)
    assert (difference > 0).mean() <= differing


@pytest.mark.parametrize("factor", [0.0, 0.5, 0.8, 1.25, 1.5])
def test_saturation_of_mmseg_scales_s_of_hsv(factor):
    image = np.random.default_rng(6).integers(0, 256, (1, 16, 16, 3)).astype(np.float32)
    got = run(image, with_values(saturation=factor), PRESETS["mmseg"])
    for y, x in np.ndindex(16, 16):
        h, s, v = colorsys.rgb_to_hsv(*(image[0, y, x].astype(float) / 255))
        expected = 255 * np.array(colorsys.hsv_to_rgb(h, min(1.0, s * factor), v))
        assert np.abs(got[0, y, x] - expected).max() <= 0.501


def test_eomt_preset_equals_the_slow_twin():
    random = np.random.default_rng(1)
    images = random.integers(0, 256, (24, 5, 6, 3)).astype(np.float32)
    draws = draw_colour(random.random((24, COLOUR_NUMBERS)), PRESETS["eomt"])
    inside = [(5, 6)] * 12 + [(3, 4)] * 12
    got = run(images, draws, PRESETS["eomt"], inside)
    for i, (height, width) in enumerate(inside):
        image = whole(images[i, :height, :width] * draws.brightness[i]).astype(float)
        steps = ["saturate", "hue"]
        steps.insert(0 if draws.contrast_early[i] else 2, "contrast")
        for step in steps:
            if step == "hue":
                for y, x in np.ndindex(height, width) if draws.hue[i] != 0 else ():
                    image[y, x] = rotated(image[y, x], float(draws.hue[i]))
            elif step == "saturate":
                image = adjust_saturation(image, float(draws.saturation[i]))
            else:  # adjust_contrast: about the mean of the floored grey
                factor = float(draws.contrast[i])
                image = np.floor(np.clip(image * factor + grey_levels(image).mean() * (1 - factor), 0, 255))
        assert np.abs(got[i, :height, :width] - image).max() <= 2
        assert (got[i, :height, :width] != image).mean() < 0.05


def test_known_colours():
    red = np.full((1, 1, 1, 3), (255, 0, 0), np.float32)
    preset = PRESETS["reference"]
    np.testing.assert_array_equal(run(red, with_values(hue=1 / 3), preset)[0, 0, 0], (0, 255, 0))
    np.testing.assert_array_equal(run(red, with_values(hue=-1 / 3), preset)[0, 0, 0], (0, 0, 255))
    np.testing.assert_array_equal(run(red, with_values(hue=0.5), preset)[0, 0, 0], (0, 255, 255))
    # The grey of full red is 76: halves of both, cut off.
    np.testing.assert_array_equal(run(red, with_values(saturation=0.5), preset)[0, 0, 0], (165, 38, 38))
    hsv = run(red, with_values(saturation=0.5), PRESETS["mmseg"])
    np.testing.assert_array_equal(hsv[0, 0, 0], (255, 128, 128))
    np.testing.assert_array_equal(run(red, with_values(brightness=-10.5), preset)[0, 0, 0], (244, 0, 0))
    np.testing.assert_array_equal(run(red, with_values(contrast=0.5), preset)[0, 0, 0], (127, 0, 0))
    over = np.full((1, 1, 1, 3), (200, 100, 100), np.float32)
    # S = 1/2 times 3 stops at 1: the full red of the same value, not beyond.
    beyond = run(over, with_values(saturation=3.0), PRESETS["mmseg"])
    np.testing.assert_array_equal(beyond[0, 0, 0], (200, 0, 0))


@pytest.mark.parametrize("name", ["reference", "mmseg", "eomt"])
def test_neutral_parameters_change_nothing_even_where_the_step_runs(name):
    preset = PRESETS[name]
    levels = np.arange(256, dtype=np.float32)
    images = np.random.default_rng(2).permuted(np.tile(levels, (2, 6, 3, 1)), axis=-1).transpose(0, 1, 3, 2)
    neutral = with_values(2, additive=preset.additive)
    table = torch.from_numpy(neutral.table())
    # Tell every step that it is wanted: as on a GPU, where one sample's coin makes the step run for all.
    pretend = with_values(2, additive=preset.additive, brightness=9, contrast=9, saturation=9, hue=9)
    for early in (True, False):
        tensor = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
        before = tensor.clone()
        forced = replace(pretend, contrast_early=np.array([early] * 2))
        distort(tensor, table, forced, preset, torch.tensor([[6, 256]] * 2))
        assert torch.equal(tensor, before)


def test_values_stay_whole_levels():
    random = np.random.default_rng(3)
    images = random.integers(0, 256, (16, 4, 4, 3)).astype(np.float32)
    for preset in filter(None, PRESETS.values()):
        got = run(images, draw_colour(random.random((16, COLOUR_NUMBERS)), preset), preset)
        assert got.min() >= 0
        assert got.max() <= 255
        np.testing.assert_array_equal(got, np.round(got))


def test_draws_follow_the_presets():
    uniform = np.random.default_rng(4).random((4000, COLOUR_NUMBERS))
    reference, mmseg, eomt = (draw_colour(uniform, PRESETS[name]) for name in ("reference", "mmseg", "eomt"))
    for values, neutral in (
        (reference.brightness, 0),
        (reference.contrast, 1),
        (reference.hue, 0),
        (eomt.brightness, 1),
    ):
        assert abs((values == neutral).mean() - 0.5) < 0.03
    assert (np.abs(reference.hue).max() > 0.49) & (np.abs(reference.hue).max() <= 0.5)
    assert 0.098 < np.abs(mmseg.hue).max() <= np.float32(0.1)
    assert 0.049 < np.abs(eomt.hue).max() <= np.float32(0.05)
    assert 31 < reference.brightness.max() <= 32
    assert -32 <= reference.brightness.min() < -31
    assert 0.875 <= eomt.brightness.min() < 0.88
    assert 0.5 <= reference.saturation.min() < 0.51
    assert 1.49 < reference.saturation.max() <= 1.5
    assert abs(reference.contrast_early.mean() - 0.5) < 0.03
