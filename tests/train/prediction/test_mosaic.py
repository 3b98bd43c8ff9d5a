"""A mosaic's labels are those of all windows held at once, whatever the panels, and its memory is bounded."""

import os
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

from maskshards.train.evaluation.inference import InferenceSettings, NonFiniteScores, windows
from maskshards.train.prediction.mosaic import label_mosaic, panels
from tests.train.trained_run import save_run, small_config

CLASSES = 5


def scores_of(batch):
    """Scores that depend on the whole window and on the place in it, as a network's do."""
    pixels = batch.to(torch.float32)
    down = torch.linspace(0.5, 1.5, pixels.shape[2])[:, None]
    across = torch.linspace(1.3, 0.7, pixels.shape[3])
    mean = pixels.mean(dim=(1, 2, 3))[:, None, None]
    return torch.stack(
        [torch.sin((k + 1) * pixels.sum(1) / 97 + mean / 31) * down * across for k in range(CLASSES)], dim=1
    )


def held_at_once(image, settings):
    """The slow twin: one score map for the whole image."""
    height, width = image.shape[:2]
    sums, counts = torch.zeros(CLASSES, height, width), torch.zeros(height, width)
    for top, left, tall, wide in windows(height, width, settings.crop_px, settings.stride_px):
        window = torch.from_numpy(image[top : top + tall, left : left + wide]).permute(2, 0, 1)[None]
        sums[:, top : top + tall, left : left + wide] += scores_of(window)[0]
        counts[top : top + tall, left : left + wide] += 1
    return (sums / counts).argmax(0).numpy()


@pytest.mark.parametrize("size", [(200, 310), (64, 500), (333, 64), (50, 400), (64, 64), (30, 20)])
@pytest.mark.parametrize(("crop", "stride"), [(64, 48), (64, 20), (64, 64)])
@pytest.mark.parametrize("band_bytes", [1, 4 * (CLASSES + 1) * 64 * 300, 1 << 30])
def test_labels_equal_those_of_all_scores_held_at_once(size, crop, stride, band_bytes):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    settings = InferenceSettings(crop_px=crop, stride_px=stride)
    found = label_mosaic(image, scores_of, CLASSES, settings, band_bytes=band_bytes)
    assert found.dtype == np.uint8
    assert np.array_equal(found, held_at_once(image, settings))


def test_windows_of_a_panel_span_no_more_than_allowed():
    lefts = [min(k * 48, 936) for k in range(21)]
    for most in (300, 400, 1000):
        found = panels(lefts, 64, 1000, most)
        assert found[0][0] == 0
        assert found[-1][1] == 1000
        assert all(a[1] == b[0] for a, b in pairwise(found))
        for left, right in found:
            touching = [x for x in lefts if x < right and x + 64 > left]
            assert touching[-1] + 64 - touching[0] <= most
    assert panels(lefts, 64, 1000, 10**6) == [(0, 1000)]


def test_windows_go_through_the_model_many_at_once():
    sizes = []

    def note(batch):
        sizes.append(len(batch))
        return scores_of(batch)

    image = np.zeros((64, 64 * 100, 3), np.uint8)
    label_mosaic(image, note, CLASSES, InferenceSettings(crop_px=64, stride_px=64))
    assert sizes == [64, 36]


def test_scores_that_are_not_finite_are_an_error():
    def broken(batch):
        return scores_of(batch) * float("nan")

    with pytest.raises(NonFiniteScores):
        label_mosaic(
            np.zeros((64, 64, 3), np.uint8), broken, CLASSES, InferenceSettings(crop_px=64, stride_px=64)
        )


def test_more_than_256_classes_take_16_bits():
    def many(batch):
        scores = torch.zeros(len(batch), 300, *batch.shape[2:])
        scores[:, 299] = 1
        return scores

    image = np.zeros((70, 70, 3), np.uint8)
    found = label_mosaic(image, many, 300, InferenceSettings(crop_px=64, stride_px=64))
    assert found.dtype == np.uint16
    assert (found == 299).all()


@pytest.mark.slow
def test_a_mosaic_of_200_megapixels_takes_less_than_4_gb(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    names = [f"class {k}" for k in range(150)]
    config = small_config("linear", names)
    config.eval.crop_size = config.eval.stride = 512
    run = save_run(tmp_path / "run", names=names, config=config)
    Image.new("L", (20_000, 10_000), 99).save(tmp_path / "mosaic.png", compress_level=1)
    words = ["predict", str(run), str(tmp_path / "mosaic.png"), "--mosaic", "--device", "cpu"]
    command = [sys.executable, "-m", "maskshards", *words, "--output", str(tmp_path / "out")]
    with subprocess.Popen(command) as child:
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    assert child.returncode == 0
    assert used.ru_maxrss * 1024 < 4e9
    with Image.open(tmp_path / "out/labels/mosaic.png") as labels:
        assert labels.size == (20_000, 10_000)
