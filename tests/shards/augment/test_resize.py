"""Both resize rules against Pillow itself."""

import numpy as np
import pytest
import torch
from PIL import Image

from maskshards.shards.augment.resize import (
    fitted_size,
    nearest_sources,
    normalise,
    resize_image,
    short_side_size,
)

SIZES = [
    ((48, 64), (24, 32)),
    ((48, 64), (96, 128)),
    ((37, 53), (51, 73)),
    ((61, 40), (19, 12)),
    ((20, 30), (20, 30)),
]
SIZES += [
    ((90, 70), (7, 5)),
    ((5, 3), (64, 39)),
    ((1, 9), (4, 36)),
    ((33, 33), (1, 1)),
    ((340, 410), (10, 13)),
    ((500, 20), (9, 12)),
]


def ramp(height, width):
    """Distinct slopes in both directions and all channels: a shift of half a pixel shows."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 / max(width - 1, 1), y * 255 / max(height - 1, 1), (x + y) % 256], -1).astype(
        np.uint8
    )


def noise(height, width):
    return np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])  # the CPU's kernel, and the one CUDA uses too
@pytest.mark.parametrize("picture", [ramp, noise])
@pytest.mark.parametrize(("source", "target"), SIZES)
def test_image_equals_pillow_within_one_level(source, target, picture, dtype):
    image = picture(*source)
    expected = np.asarray(Image.fromarray(image).resize(target[::-1], Image.Resampling.BILINEAR), np.int64)
    got = resize_image(torch.from_numpy(image).to(dtype), *target)
    assert got.dtype == torch.float32
    assert got.shape == (3, *target)
    assert torch.equal(got, got.round().clamp(0, 255))
    assert np.abs(got.permute(1, 2, 0).numpy() - expected).max() <= 1


def test_nearest_equals_pillow_for_every_small_pair_and_odd_large_ones():
    random = np.random.default_rng(0)
    pairs = [(i, o) for i in range(1, 40) for o in range(1, 40)]
    pairs += [tuple(random.integers(1, 2100, 2).tolist()) for _ in range(500)]
    for source, target in pairs:
        row = Image.fromarray(np.arange(source, dtype=np.int32)[None])
        expected = np.asarray(row.resize((target, 1), Image.Resampling.NEAREST))[0]
        np.testing.assert_array_equal(
            nearest_sources(source, target), expected, err_msg=f"{source} -> {target}"
        )


def test_the_exact_rational_rule_would_not_do():
    # What the table is for: multiplying instead of adding differs from Pillow at ties.
    source, target = 33, 22
    assert any(
        not np.array_equal((2 * np.arange(o) + 1) * i // (2 * o), nearest_sources(i, o))
        for i in range(1, source)
        for o in range(1, target)
    )


@pytest.mark.parametrize(
    ("height", "width", "short", "expected"),
    [
        (480, 640, 512, (512, 683)),  # 682.67 up
        (640, 480, 512, (683, 512)),
        (4, 6, 3, (3, 5)),  # 4.5: half goes up, also where rounding to even would go down
        (100, 100, 7, (7, 7)),
        (1000, 1, 1, (1000, 1)),
        (3, 7, 1, (1, 2)),  # 2.33 down
    ],
)
def test_short_side_size(height, width, short, expected):
    assert short_side_size(height, width, short) == expected


def test_fitted_size_is_relative_to_fitting_inside_the_crop():
    assert fitted_size(480, 640, (512, 512), 1.0) == (384, 512)
    assert fitted_size(640, 480, (512, 512), 0.5) == (256, 192)
    assert fitted_size(1, 1000, (32, 32), 0.1) == (1, 3)


def test_normalise():
    image = torch.randint(0, 256, (2, 3, 4, 5)).float()
    got = normalise(image, (1.0, 2.0, 3.0), (4.0, 5.0, 6.0))
    for channel in range(3):
        expected = (image[:, channel] - (channel + 1)) / (channel + 4)
        torch.testing.assert_close(got[:, channel], expected)
