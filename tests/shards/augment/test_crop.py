"""Crops against Pillow and numpy doing the same to whole images, one after the other."""

import os
import runpy
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import maskshards.shards.augment.photometric
from maskshards.shards.augment import crop as augment
from maskshards.shards.augment.crop import CropSettings, choose, crop, draw_crops
from maskshards.shards.augment.philox import key_digest, uniforms
from maskshards.shards.augment.photometric import COLOUR_NUMBERS, draw_colour
from maskshards.shards.augment.presets import LSJ_RATIO, PRESETS
from maskshards.shards.augment.resize import resize_planes
from maskshards.shards.batch import VOID
from maskshards.shards.errors import SampleError

PLAIN = CropSettings(
    crop_px=(32, 48), image_px=40, photometric="none", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)
)


def oracle(image, class_map, ratio, down, right, flip, settings):
    """The whole chain with Pillow: resized images, windows counted by np.unique, crop, flip, pad."""
    height, width = class_map.shape
    short = int(settings.image_px * ratio)
    size = [int(side * short / min(height, width) + 0.5) for side in (height, width)]
    resized = np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR)).astype(int)
    labels = np.asarray(
        Image.fromarray(class_map.astype(np.int32)).resize(size[::-1], Image.Resampling.NEAREST)
    )
    crop_h, crop_w = settings.crop_px
    for y, x in zip(down, right, strict=True):
        top = int(y * (max(size[0] - crop_h, 0) + 1))
        left = int(x * (max(size[1] - crop_w, 0) + 1))
        window = (slice(top, top + crop_h), slice(left, left + crop_w))
        classes, counts = np.unique(labels[window][labels[window] != 65535], return_counts=True)
        if len(classes) > 1 and counts.max() / counts.sum() < settings.max_class_share:
            break
    step = -1 if flip else 1
    pixels, ids = resized[window][:, ::step], labels[window][:, ::step]
    beyond = ((0, crop_h - ids.shape[0]), (0, crop_w - ids.shape[1]))
    return np.pad(pixels, (*beyond, (0, 0))).transpose(2, 0, 1), np.pad(ids, beyond, constant_values=65535)


def class_ids(crops, i):
    """(H, W) class ids of crop i, 65535 for none."""
    table = np.full(256, 65535)
    own = crops.labels[i][crops.labels[i] >= 0].numpy()
    table[: len(own)] = own
    return table[crops.owner_map[i].numpy()]


def check_against_oracle(images, class_maps, crops, draws, settings):
    for i, (image, class_map) in enumerate(zip(images, class_maps, strict=True)):
        pixels, ids = oracle(
            image, class_map, draws.ratios[i], draws.down[i], draws.right[i], draws.flips[i], settings
        )
        np.testing.assert_array_equal(class_ids(crops, i), ids)
        assert np.abs(crops.images[i].numpy() - pixels).max() <= 2


@pytest.mark.parametrize("seed", range(12))
def test_equals_pillow_on_random_scenes(make_batch, random_scenes, seed):
    # Small and large images: windows inside, images smaller than the crop in one or both directions.
    images, class_maps = random_scenes(8, 12, 110, seed)
    batch = make_batch(images, class_maps)
    settings = replace(PLAIN, ratio=(0.3, 2.5), candidates=1 + seed)
    draws = draw_crops(batch, seed, settings)
    check_against_oracle(images, class_maps, crop(batch, draws, settings), draws, settings)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 200))
def test_equals_pillow_on_many_more(make_batch, random_scenes, seed):
    random = np.random.default_rng(seed)
    images, class_maps = random_scenes(
        6, 1, int(random.integers(2, 400)), seed, classes=int(random.integers(1, 60))
    )
    batch = make_batch(images, class_maps)
    low, high = sorted(random.uniform(0.05, 6, 2))
    crop_px = tuple(random.integers(1, 200, 2).tolist())
    settings = replace(PLAIN, ratio=(low, high), crop_px=crop_px, image_px=int(random.integers(20, 150)))
    draws = draw_crops(batch, seed, settings)
    check_against_oracle(images, class_maps, crop(batch, draws, settings), draws, settings)


def test_extreme_shapes_equal_pillow(make_batch):
    random = np.random.default_rng(0)
    sizes = [(1, 1), (1, 300), (300, 1), (2, 7), (200, 31), (40, 40)]
    images = [random.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
    class_maps = [random.integers(0, 3, size) for size in sizes]
    batch = make_batch(images, class_maps)
    settings = replace(PLAIN, ratio=(0.5, 0.9))
    draws = draw_crops(batch, 0, settings)
    check_against_oracle(images, class_maps, crop(batch, draws, settings), draws, settings)


def test_a_ramp_keeps_its_phase(make_batch):
    # On a ramp a window shifted by a part of a pixel is off by that part everywhere, which noise could hide.
    image = np.repeat((np.arange(0, 250)[None, :, None]).astype(np.uint8), 60, 0).repeat(3, 2)
    class_map = np.zeros((60, 250), int)
    batch = make_batch([image] * 6, [class_map] * 6)
    for ratio in (0.8, 1.5, 2.7):
        settings = replace(PLAIN, ratio=(ratio, ratio), flip_prob=0.0)
        draws = draw_crops(batch, 3, settings)
        crops = crop(batch, draws, settings)
        for i in range(6):
            pixels, _ = oracle(image, class_map, ratio, draws.down[i], draws.right[i], False, settings)
            inside = pixels[0, 10] > 0
            assert abs((crops.images[i].numpy() - pixels)[:, 10, inside].mean()) < 0.3
            assert np.abs(crops.images[i].numpy() - pixels).max() <= 2


def test_padding_is_zero_after_normalisation_and_void(make_batch):
    image, class_map = np.full((20, 30, 3), 200, np.uint8), np.zeros((20, 30), int)
    settings = CropSettings(crop_px=(64, 96), image_px=20, ratio=None, photometric="none", flip_prob=1.0)
    crops = crop(*_with_draws(make_batch([image], [class_map]), settings))
    assert torch.equal(crops.owner_map[0, :20, :30], torch.zeros(20, 30, dtype=torch.int16))
    assert (crops.images[0, :, :20, :30] != 0).all()
    crops.images[0, :, :20, :30] = 0
    crops.owner_map[0, :20, :30] = VOID
    assert (crops.images == 0).all()
    assert (crops.owner_map == VOID).all()


def _with_draws(batch, settings, seed=0):
    return batch, draw_crops(batch, seed, settings), settings


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ([[0, 3, 1], [0, 2, 1], [0, 9, 0]], 1),  # 3 of 4 is not below 0.75; 2 of 3 is
        ([[0, 4, 0], [5, 4, 0], [0, 3, 1]], 2),  # one class, or too large a one: the last, whatever it is
        ([[0, 0, 0], [9, 0, 0], [0, 2, 2]], 2),  # nothing labelled at all
        ([[999, 2, 1], [0, 1, 1], [0, 1, 1]], 0),  # ignored pixels do not count, however many
        ([[0, 0, 0], [0, 0, 0], [0, 0, 0]], 2),
        (
            [[0, 30000000, 10000001], [0, 30000000, 10000000], [0, 0, 1]],
            0,
        ),  # a hair below, in exact arithmetic
        ([[0, 30000000, 10000000], [0, 30000000, 10000000], [0, 0, 1]], 2),  # exactly 0.75
    ],
)
def test_choice_among_candidates(counts, expected):
    assert choose(torch.tensor([counts, counts], dtype=torch.int32), 0.75).tolist() == [expected] * 2


def test_one_class_alone_is_never_good_enough():
    counts = torch.tensor([[[0, 9, 0], [0, 9, 1], [0, 9, 0]]], dtype=torch.int32)
    assert choose(counts, 1.5).tolist() == [1]


def test_all_numbers_of_a_sample_differ(make_batch, random_scenes):
    draws = draw_crops(make_batch(*random_scenes(3, 20, 40, 0)), 0, replace(PLAIN, ratio=(0.0001, 1.0001)))
    numbers = np.concatenate([draws.ratios - 0.0001, draws.down.ravel(), draws.right.ravel()])
    assert len(np.unique(numbers.round(9))) == 3 * (1 + 10 + 10)


def test_numbers_belong_to_seed_epoch_and_key_alone(make_batch, random_scenes):
    images, class_maps = random_scenes(4, 20, 40, 0)
    settings = replace(PLAIN, photometric="reference")
    together = draw_crops(make_batch(images, class_maps, epochs=[1, 1, 2, 2], keys="abab"), 5, settings)
    alone = draw_crops(make_batch(images[3:], class_maps[3:], epochs=[2], keys="b"), 5, settings)
    for name in ("ratios", "down", "right", "flips"):
        np.testing.assert_array_equal(getattr(together, name)[3], getattr(alone, name)[0])
    for name in alone.colour.__slots__:
        np.testing.assert_array_equal(getattr(together.colour, name)[3], getattr(alone.colour, name)[0])
    assert len(set(together.ratios)) == 4
    other_seed = draw_crops(make_batch(images[3:], class_maps[3:], epochs=[2], keys="b"), 6, settings)
    assert other_seed.ratios[0] != alone.ratios[0]


def test_each_number_is_drawn_for_its_purpose(make_batch, random_scenes):
    """Runs are continued and repeated by these numbers: what each purpose draws may never change."""
    batch = make_batch(*random_scenes(2, 20, 40, 0), epochs=[4, 7], keys="xy")
    settings = replace(PLAIN, ratio=(0.5, 3.0), candidates=3, flip_prob=0.4, photometric="reference")
    draws = draw_crops(batch, 11, settings)
    for i, (epoch, key) in enumerate(((4, "x"), (7, "y"))):
        ratio, places, flip, colour = (
            uniforms(11, [epoch], [key_digest(key)], [purpose], count)[0]
            for purpose, count in enumerate((1, 6, 1, COLOUR_NUMBERS))
        )
        assert draws.ratios[i] == 0.5 + 2.5 * ratio[0]
        assert draws.down[i].tolist() == places[[0, 2, 4]].tolist()
        assert draws.right[i].tolist() == places[[1, 3, 5]].tolist()
        assert draws.flips[i] == (flip[0] < 0.4)
        expected = draw_colour(colour[None], PRESETS["reference"])
        np.testing.assert_array_equal(draws.colour.table()[:, i], expected.table()[:, 0])
    table = draws.rows()
    assert table.shape == (2, 1 + 3 + 3 + 1 + 5)
    assert table[:, 0].tolist() == draws.ratios.tolist()
    np.testing.assert_array_equal(table[:, 8:], draws.colour.table().T)
    assert draw_crops(batch, 11, replace(settings, photometric="none")).rows().shape == (2, 8)


def test_more_candidates_leave_the_other_numbers_alone(make_batch, random_scenes):
    batch = make_batch(*random_scenes(3, 20, 40, 0))
    few, many = (draw_crops(batch, 0, replace(PLAIN, candidates=count)) for count in (2, 10))
    np.testing.assert_array_equal(few.down, many.down[:, :2])
    np.testing.assert_array_equal(few.ratios, many.ratios)
    np.testing.assert_array_equal(few.flips, many.flips)


def test_a_sample_is_cropped_the_same_in_any_company(make_batch, random_scenes):
    images, class_maps = random_scenes(5, 20, 90, 1)
    settings = replace(CropSettings(), crop_px=(32, 48), image_px=40)
    together = crop(*_with_draws(make_batch(images, class_maps, keys="abcde"), settings))
    for i, key in enumerate("abcde"):
        alone = crop(*_with_draws(make_batch(images[i : i + 1], class_maps[i : i + 1], keys=key), settings))
        assert torch.equal(alone.images[0], together.images[i])
        assert torch.equal(alone.owner_map[0], together.owner_map[i])
        assert together.labels[i][: alone.labels.shape[1]].tolist() == alone.labels[0].tolist()


def test_colour_runs_on_whole_levels_before_normalisation(make_batch, random_scenes):
    batch = make_batch(*random_scenes(6, 50, 60, 2))
    settings = replace(PLAIN, photometric="reference", ratio=(1.0, 1.0))
    colourful = crop(*_with_draws(batch, settings))
    plain = crop(*_with_draws(batch, replace(settings, photometric="none")))
    assert torch.equal(colourful.images, colourful.images.round())
    assert torch.equal(colourful.owner_map, plain.owner_map)
    assert (colourful.images - plain.images).abs().mean() > 5


def test_fit_jitter_is_relative_to_the_crop(make_batch):
    image, class_map = np.full((20, 40, 3), 9, np.uint8), np.zeros((20, 40), int)
    settings = replace(PLAIN, jitter="fit", ratio=(0.5, 0.5), flip_prob=0.0)
    crops = crop(*_with_draws(make_batch([image], [class_map]), settings))
    # Fitting 20x40 into 32x48 is 24x48; half of it is 12x24.
    shown = crops.owner_map[0] != VOID
    assert shown[:12, :24].all()
    assert shown.sum() == 12 * 24


def test_large_scale_jitter_equals_a_slow_twin(make_batch):
    crop_h, crop_w = 32, 48
    settings = replace(PLAIN, jitter="fit", ratio=LSJ_RATIO, flip_prob=0.0, candidates=1)
    ratios = []
    for seed, (height, width) in enumerate([(20, 40), (40, 20), (31, 97), (7, 5), (64, 96)] * 8):
        class_map = np.arange(height * width).reshape(height, width) % 200
        batch = make_batch([np.zeros((height, width, 3), np.uint8)], [class_map], keys=[f"k{seed}"])
        draws = draw_crops(batch, seed, settings)
        ratios.append(float(draws.ratios[0]))
        assert 0.1 <= ratios[-1] < 2.0
        # Grow each side a pixel at a time until the image no longer fits the scaled crop.
        ratio, grown = Fraction(ratios[-1]), 0
        while (grown + 1) <= ratio * crop_w and Fraction(grown + 1, width) * height <= ratio * crop_h:
            grown += 1
        tall = 0
        while (tall + 1) <= ratio * crop_h and Fraction(tall + 1, height) * width <= ratio * crop_w:
            tall += 1
        size = max(1, tall), max(1, grown)
        resized = Image.fromarray(class_map.astype(np.int32)).resize(size[::-1], Image.Resampling.NEAREST)
        top = int(draws.down[0, 0] * (max(size[0] - crop_h, 0) + 1))
        left = int(draws.right[0, 0] * (max(size[1] - crop_w, 0) + 1))
        window = np.asarray(resized)[top : top + crop_h, left : left + crop_w]
        expected = np.full((crop_h, crop_w), 65535)
        expected[: window.shape[0], : window.shape[1]] = window
        np.testing.assert_array_equal(class_ids(crop(batch, draws, settings), 0), expected)
    assert min(ratios) < 0.3
    assert max(ratios) > 1.8


def test_254_classes_fit_and_255_are_refused(make_batch):
    image = np.zeros((16, 16, 3), np.uint8)
    settings = replace(PLAIN, crop_px=(16, 16), image_px=16, ratio=None, flip_prob=0.0)
    full = np.minimum(np.arange(256), 253).reshape(16, 16)
    crops = crop(*_with_draws(make_batch([image], [full]), settings))
    np.testing.assert_array_equal(class_ids(crops, 0), full)
    over = np.minimum(np.arange(256), 254).reshape(16, 16)
    with pytest.raises(SampleError, match=r"'crowd'.*255 classes.*at most 254"):
        crop(*_with_draws(make_batch([image], [over], keys=["crowd"]), settings))


def test_what_is_not_said_is_the_published_recipe_and_limits_are_allowed():
    assert CropSettings() == CropSettings(
        (512, 512), 512, (0.5, 2.0), 0.5, "reference", 10, 0.75,
        (123.675, 116.28, 103.53), (58.395, 57.12, 57.375), "short_side",
    )  # fmt: skip
    for value in (
        {"crop_px": (1, 1)}, {"image_px": 1}, {"ratio": (0.5, 0.5)}, {"flip_prob": 0}, {"flip_prob": 1},
        {"candidates": 1}, {"max_class_share": 0.1}, {"std": (0.5, 0.5, 0.5)},
    ):  # fmt: skip
        assert CropSettings(**value) != CropSettings()


def test_an_image_shrinks_to_one_pixel_and_no_further(make_batch):
    settings = replace(PLAIN, image_px=1, ratio=(0.5, 0.5))
    crops = crop(
        *_with_draws(make_batch([np.full((6, 12, 3), 9, np.uint8)], [np.zeros((6, 12), int)]), settings)
    )
    assert (crops.owner_map[0] != VOID).nonzero().tolist() == [[0, 0], [0, 1]]


def test_crops_without_a_class_have_one_empty_label_and_no_largest(make_batch):
    nothing = make_batch([np.zeros((6, 12, 3), np.uint8)], [np.full((6, 12), 65535)])
    crops = crop(*_with_draws(nothing, PLAIN))
    assert (crops.labels.tolist(), crops.largest_class_id) == ([[-1]], -1)
    assert (crops.owner_map == VOID).all()


@pytest.mark.parametrize(
    "wrong",
    [
        {"crop_px": (0, 5)},
        {"crop_px": (5, 0)},
        {"crop_px": 512},
        {"flip_prob": -0.1},
        {"image_px": 0},
        {"ratio": (2.0, 0.5)},
        {"ratio": (0.0, 0.5)},
        {"flip_prob": 1.5},
        {"photometric": "refrence"},
        {"candidates": 0},
        {"max_class_share": 0.0},
        {"std": (1.0, 0.0, 1.0)},
        {"jitter": "lsj"},
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=f"crop setting {name} is .*expected"):
        CropSettings(**wrong)


@pytest.mark.parametrize("dataset", ["ade20k", "camvid", "cocostuff"])
def test_real_images_equal_pillow(make_batch, dataset):
    root = Path(os.environ.get("MASKSHARDS_TEST_DATA", "")) / dataset
    if not os.environ.get("MASKSHARDS_TEST_DATA") or not root.is_dir():
        pytest.skip(f"MASKSHARDS_TEST_DATA does not name a folder that holds {dataset}")
    images, class_maps = [], []
    for path in sorted((root / "images/training").glob("*.jpg"))[:4]:
        images.append(np.array(Image.open(path).convert("RGB")))
        labels = np.array(Image.open(root / "annotations/training" / f"{path.stem}.png")).astype(int)
        class_maps.append(np.where(labels == 0, 65535, labels - 1))
    settings = replace(PLAIN, crop_px=(512, 512), image_px=512, ratio=(0.5, 2.0))
    batch = make_batch(images, class_maps)
    draws = draw_crops(batch, 1, settings)
    check_against_oracle(images, class_maps, crop(batch, draws, settings), draws, settings)


@pytest.mark.parametrize("photometric", ["none", "reference", "eomt"])
def test_no_number_is_asked_of_the_device(make_batch, random_scenes, photometric):
    # Tensors on "meta" have shapes and no values: whatever needed one, as a host sync would, raises.
    batch = make_batch(*random_scenes(4, 12, 110, 5))
    settings = replace(CropSettings(), crop_px=(64, 96), image_px=48, photometric=photometric)
    crops = crop(batch.to("meta"), draw_crops(batch, 0, settings), settings)
    assert crops.images.shape == (4, 3, 64, 96)
    assert crops.images.dtype == torch.float32
    assert crops.owner_map.shape == (4, 64, 96)
    assert crops.owner_map.dtype == torch.int16


@pytest.mark.parametrize("photometric", ["none", "reference", "mmseg", "eomt"])
def test_working_on_whole_batches_as_a_gpu_does_gives_the_same(
    make_batch, random_scenes, photometric, monkeypatch
):
    batch = make_batch(*random_scenes(6, 12, 110, 6))
    settings = replace(PLAIN, photometric=photometric)
    draws = draw_crops(batch, 0, settings)
    expected = crop(batch, draws, settings)
    for module in (augment, maskshards.shards.augment.photometric):
        monkeypatch.setattr(module, "stretches", lambda size, device, active=None: [slice(0, size)])
    got = crop(batch, draws, settings)
    assert torch.equal(got.owner_map, expected.owner_map)
    assert torch.equal(got.images, expected.images)
    monkeypatch.setattr(
        augment, "resize_planes", lambda image, *size: resize_planes(image.float(), *size).round()
    )
    got = crop(batch, draws, settings)
    # A grey level of resizing, which contrast and saturation may widen to a few.
    assert (got.images - expected.images).abs().max() <= (1 if photometric == "none" else 12)
    assert (got.images - expected.images).abs().mean() < 0.5


def test_the_documented_loop_runs(make_split, tmp_path):
    text = (Path(__file__).parents[3] / "docs/augmentation.md").read_text()
    start = text.index("    from maskshards import CropSettings")
    lines = [line[4:] for line in text[start : text.index("## No waiting")].rstrip().split("\n")]
    program = "\n".join([*lines, "        break", ""])
    folder = make_split("documented", [8]).folder
    program = program.replace("data/ade20k-shards/training", str(folder)).replace('"cuda"', '"cpu"')
    (tmp_path / "documented.py").write_text(program)
    left = runpy.run_path(str(tmp_path / "documented.py"))
    assert left["crops"].images.shape == (8, 3, 512, 512)
    assert len(left["masks"]) == 8


@pytest.mark.gpu
def test_cuda_equals_cpu_and_never_waits(make_batch, random_scenes):
    batch = make_batch(*random_scenes(8, 12, 110, 4))
    settings = replace(CropSettings(), crop_px=(64, 96), image_px=48)
    draws = draw_crops(batch, 0, settings)
    expected = crop(batch, draws, settings)
    on_device = batch.to("cuda")
    crop(on_device, draws, settings)  # first use of kernels and allocators may wait
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        got = crop(on_device, draws, settings)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(got.owner_map.cpu(), expected.owner_map)
    assert torch.equal(got.labels.cpu(), expected.labels)
    plain = replace(settings, photometric="none", mean=(0.0,) * 3, std=(1.0,) * 3)
    difference = (crop(on_device, draws, plain).images.cpu() - crop(batch, draws, plain).images).abs()
    assert difference.max() <= 1
