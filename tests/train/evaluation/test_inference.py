import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from maskshards.shards.augment.resize import normalise, resize_image
from maskshards.train.evaluation import inference
from maskshards.train.evaluation.inference import (
    InferenceSettings,
    NonFiniteScores,
    label_maps,
    score_maps,
    variant_sizes,
    windows,
)


class BorderedScorer(nn.Module):
    """A convolution whose zero padding makes a pixel's scores depend on the window it is seen in."""

    def __init__(self, num_classes=5, scale=0.1):
        super().__init__()
        self.num_classes = num_classes
        self.convolution = nn.Conv2d(3, num_classes, 7, padding=3)
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
        self.seen = []

    def scores(self, images):
        self.seen.append(tuple(images.shape))
        return self.convolution(images)


def _image(height, width, seed=0):
    """A smooth random photograph stand-in, (H, W, 3) uint8."""
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.uniform(0, 255, size=(1, 3, 6, 7)))
    fine = F.interpolate(coarse, (height, width), mode="bicubic", align_corners=False)[0]
    return fine.clamp(0, 255).permute(1, 2, 0).round().to(torch.uint8).contiguous()


def _naive_label_map(scorer, image, settings):
    """One window at a time, one variant at a time, sums in float64, no batching: the reference's rules as
    read."""
    height, width, _ = image.shape
    variants = [(ratio, False) for ratio in settings.ratios]
    variants += [(ratio, True) for ratio in settings.ratios] if settings.flip else []
    total = torch.zeros(scorer.num_classes, height, width, dtype=torch.float64)
    for ratio, mirrored in variants:
        px = int(settings.image_px * ratio)
        while ratio < 1 and px % 32:
            px += 1
        short = min(height, width)
        tall, wide = int(height * px / short + 0.5), int(width * px / short + 0.5)
        seen = normalise(resize_image(image, tall, wide), settings.mean, settings.std)
        if mirrored:
            seen = seen.flip(-1)
        crop = settings.crop_px
        if crop > tall and crop > wide:
            crop = min(tall, wide)
        sums = torch.zeros(scorer.num_classes, tall, wide, dtype=torch.float64)
        counts = torch.zeros(tall, wide, dtype=torch.float64)
        top = 0
        while True:
            top = min(top, max(tall - crop, 0))
            left = 0
            while True:
                left = min(left, max(wide - crop, 0))
                rows, columns = slice(top, min(top + crop, tall)), slice(left, min(left + crop, wide))
                sums[:, rows, columns] += scorer.scores(seen[None, :, rows, columns])[0].double()
                counts[rows, columns] += 1
                if left + crop >= wide:
                    break
                left += settings.stride_px
            if top + crop >= tall:
                break
            top += settings.stride_px
        scores = F.interpolate((sums / counts)[None], (height, width), mode="bilinear", align_corners=False)[
            0
        ]
        if mirrored:
            scores = scores.flip(-1)
        total += scores.softmax(dim=0)
    return (total / len(variants)).argmax(dim=0)


@pytest.mark.parametrize(
    ("size", "crop", "stride", "rows", "columns"),
    [
        ((512, 683), 512, 341, [0], [0, 171]),
        ((896, 1195), 896, 596, [0], [0, 299]),
        ((985, 1313), 896, 596, [0, 89], [0, 417]),
        ((300, 200), 512, 341, [0, 100], [0]),  # both sides shorter: square windows of the short side
        ((100, 895), 896, 596, [0], [0, 100, 200, 300, 400, 500, 600, 700, 795]),  # no gaps there
    ],
)
def test_window_grid_follows_the_reference(size, crop, stride, rows, columns):
    grid = windows(*size, crop, stride)
    assert sorted({top for top, *_ in grid}) == rows
    assert sorted({left for _, left, *_ in grid}) == columns
    assert len(grid) == len(rows) * len(columns)


def test_windows_cover_every_pixel_and_have_one_size():
    rng = np.random.default_rng(0)
    for _ in range(300):
        height, width, crop = (int(n) for n in rng.integers(1, 60, size=3))
        stride = int(rng.integers(1, crop + 1))
        covered = np.zeros((height, width), int)
        grid = windows(height, width, crop, stride)
        for top, left, tall, wide in grid:
            assert top >= 0
            assert left >= 0
            assert top + tall <= height
            assert left + wide <= width
            covered[top : top + tall, left : left + wide] += 1
        assert covered.min() >= 1, (height, width, crop, stride)
        assert len({window[2:] for window in grid}) == 1


def test_one_short_side_gives_windows_that_are_not_square():
    assert windows(100, 700, 512, 341) == [(0, 0, 100, 512), (0, 188, 100, 512)]


def test_sizes_round_as_the_reference():
    settings = InferenceSettings(image_px=896, ratios=(0.9, 0.95, 1.0, 1.05, 1.1))
    assert [min(size) for size in variant_sizes(480, 640, settings)] == [832, 864, 896, 940, 985]
    assert variant_sizes(480, 640, settings)[4] == (985, 1313)
    assert variant_sizes(683, 512, InferenceSettings(image_px=896)) == [(1195, 896)]
    assert variant_sizes(2, 3, InferenceSettings(image_px=3)) == [(3, 5)]  # 4.5 rounds up
    assert variant_sizes(97, 131, InferenceSettings()) == [(97, 131)]  # no image_px: as it comes


@pytest.mark.parametrize(
    ("size", "settings"),
    [
        ((40, 57), InferenceSettings(image_px=48, crop_px=32, stride_px=20)),
        ((57, 40), InferenceSettings(image_px=48, crop_px=32, stride_px=20, windows_at_once=3)),
        ((33, 90), InferenceSettings(image_px=33, crop_px=64, stride_px=40)),
        ((40, 50), InferenceSettings(image_px=40, crop_px=200, stride_px=150)),
        (
            (45, 60),
            InferenceSettings(image_px=64, crop_px=48, stride_px=32, ratios=(0.9, 1.0, 1.1), flip=True),
        ),
        ((45, 60), InferenceSettings(image_px=64, crop_px=48, stride_px=32, ratios=(1.25,))),
        ((61, 44), InferenceSettings(image_px=50, crop_px=48, stride_px=32, flip=True)),
    ],
)
def test_label_maps_equal_a_naive_evaluation(size, settings):
    scorer, image = BorderedScorer(), _image(*size)
    (ours,) = label_maps(scorer, [image], settings)
    assert ours.dtype == torch.int64
    assert ours.shape == size
    assert ours.unique().numel() > 1
    assert (ours == _naive_label_map(scorer, image, settings)).float().mean() > 0.999


def test_whole_mode_shows_the_model_the_whole_image_once():
    scorer = BorderedScorer()
    settings = InferenceSettings(mode="whole", image_px=30, crop_px=16, stride_px=8)
    (ours,) = label_maps(scorer, [_image(60, 80)], settings)
    assert scorer.seen == [(1, 3, 30, 40)]
    resized = normalise(resize_image(_image(60, 80), 30, 40), settings.mean, settings.std)
    expected = F.interpolate(scorer.scores(resized[None]), (60, 80), mode="bilinear", align_corners=False)
    assert torch.equal(ours, expected[0].argmax(dim=0))


def test_images_in_one_batch_get_what_they_get_alone():
    scorer = BorderedScorer()
    settings = InferenceSettings(image_px=48, crop_px=32, stride_px=20, flip=True, windows_at_once=5)
    images = [_image(40, 57, 1), _image(57, 40, 2), _image(48, 48, 3)]
    together = label_maps(scorer, images, settings)
    batched_calls = len(scorer.seen)
    scorer.seen.clear()
    for image, label_map in zip(images, together, strict=True):
        assert torch.equal(label_maps(scorer, [image], settings)[0], label_map)
    assert batched_calls < len(scorer.seen)


def test_windows_of_one_size_go_through_the_model_together():
    scorer = BorderedScorer()
    settings = InferenceSettings(crop_px=32, stride_px=32, windows_at_once=4)
    score_maps(scorer, [torch.zeros(3, 64, 96), torch.zeros(3, 40, 32)], settings)
    assert scorer.seen == [(4, 3, 32, 32), (4, 3, 32, 32)]


def test_strips_give_what_the_whole_map_gives(monkeypatch):
    scores = torch.randn(4, 13, 17, generator=torch.Generator().manual_seed(0))
    for size in [(50, 40), (7, 9), (13, 17), (26, 5)]:
        whole = F.interpolate(scores[None], size, mode="bilinear", align_corners=False)[0]
        monkeypatch.setattr(inference, "STRIP_BYTES", 4 * 4 * size[1] * 3)
        strips = list(inference._strips(scores, size))
        assert len(strips) == -(-size[0] // 3)
        torch.testing.assert_close(torch.cat([strip for _, strip in strips], dim=1), whole)


def test_a_score_that_is_not_finite_is_an_error():
    scorer = BorderedScorer()
    with torch.no_grad():
        scorer.convolution.bias[2] = float("nan")
    for flip in (False, True):
        with pytest.raises(NonFiniteScores, match="NaN or infinity"):
            label_maps(scorer, [_image(20, 20)], InferenceSettings(flip=flip))


class OnePixelLost(nn.Module):
    """Sound scores but for one pixel, where no class has a finite one."""

    num_classes = 3

    def __init__(self, value):
        super().__init__()
        self.value = value

    def scores(self, images):
        scores = images[:, :1].repeat(1, self.num_classes, 1, 1)
        scores[:, :, 3, 5] = self.value
        return scores


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("settings", [{}, {"flip": True}, {"ratios": (0.5, 1.0)}])
def test_one_pixel_that_is_not_finite_is_enough(value, settings):
    with pytest.raises(NonFiniteScores, match="NaN or infinity"):
        label_maps(OnePixelLost(value), [_image(24, 24)], InferenceSettings(mode="whole", **settings))


def test_autocast_reaches_the_model_and_sums_stay_float32():
    scorer = BorderedScorer()
    settings = InferenceSettings(crop_px=32, stride_px=20)
    image = torch.randn(3, 40, 40, generator=torch.Generator().manual_seed(1))
    (exact,) = score_maps(scorer, [image], settings)
    (same,) = score_maps(scorer, [image], settings, autocast_dtype=torch.float32)
    (rough,) = score_maps(scorer, [image], settings, autocast_dtype=torch.bfloat16)
    assert torch.equal(exact, same)
    assert rough.dtype == torch.float32
    assert 0 < (rough - exact).abs().max() < 0.05 * exact.abs().max()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "tiles"}, "eval.mode is 'tiles'"),
        ({"crop_px": 32, "stride_px": 33}, "eval.stride is 33 with windows of 32"),
        ({"stride_px": 0}, "eval.stride is 0"),
        ({"ratios": ()}, "must be positive numbers"),
        ({"ratios": (1.0, -1.0)}, "must be positive numbers"),
        ({"image_px": 0}, "img_size must be at least 1"),
        ({"windows_at_once": 0}, "windows_at_once"),
    ],
)
def test_settings_that_cannot_work(settings, message):
    with pytest.raises(ValueError, match=message):
        InferenceSettings(**settings)


@pytest.mark.gpu
def test_everything_stays_on_the_device():
    scorer = BorderedScorer().cuda()
    settings = InferenceSettings(image_px=64, crop_px=48, stride_px=32, ratios=(0.9, 1.0), flip=True)
    (theirs,) = label_maps(BorderedScorer(), [_image(45, 60)], settings)
    (ours,) = label_maps(scorer, [_image(45, 60).cuda()], settings)
    assert ours.is_cuda
    assert (ours.cpu() == theirs).float().mean() > 0.99
