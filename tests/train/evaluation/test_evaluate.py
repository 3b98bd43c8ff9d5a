from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from maskshards.shards.augment.rasterize import IGNORED
from maskshards.shards.batch import RaggedBatch
from maskshards.shards.order.order import World
from maskshards.train.config.load import TrainConfig
from maskshards.train.evaluation import evaluate as module
from maskshards.train.evaluation.evaluate import (
    EvaluationError,
    EvaluationSettings,
    evaluate,
    evaluation_settings,
)
from maskshards.train.evaluation.inference import InferenceSettings, label_maps
from maskshards.train.evaluation.metrics import score

NAMES = ("red", "green", "blue")


class Decoder(nn.Module):
    """Notes the mode it is asked in."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(3)


class ColourSegmenter(nn.Module):
    """Says red, green or blue by the strongest channel."""

    def __init__(self, num_classes=3):
        super().__init__()
        self.num_classes, self.decoder, self.modes = num_classes, Decoder(), []

    def scores(self, images):
        self.modes.append(self.decoder.training)
        return images[:, : self.num_classes]


def _sample(seed):
    """An image, and labels that agree with its strongest channel but for noise and ignored pixels."""
    rng = np.random.default_rng(seed)
    height, width = (int(n) for n in rng.integers(8, 20, size=2))
    image = rng.integers(0, 256, size=(height, width, 3), dtype=np.uint8)
    label = np.where(
        rng.random((height, width)) < 0.7, image.argmax(axis=2), rng.integers(0, 3, (height, width))
    )
    return image, np.where(rng.random((height, width)) < 0.1, 255, label)


def _batch(samples, keys, valid):
    """The samples as the loader would hand them over; a row that is not valid repeats its neighbour."""
    ends, owners, offsets, labels, before = [], [], [0], [], 0
    for _, label in samples:
        flat = label.ravel()
        present = tuple(int(k) for k in np.unique(flat) if k != 255)
        last = np.flatnonzero(np.append(flat[1:] != flat[:-1], True))
        ends.append(last + 1 + before)
        owners.append([0 if flat[p] == 255 else present.index(flat[p]) + 1 for p in last])
        offsets.append(offsets[-1] + len(last))
        labels.append(present)
        before += flat.size
    return RaggedBatch(
        pixels=torch.from_numpy(np.concatenate([image.ravel() for image, _ in samples])),
        run_ends=torch.from_numpy(np.concatenate(ends).astype(np.int32)),
        run_owners=torch.from_numpy(np.concatenate(owners).astype(np.uint8)),
        run_offsets=tuple(offsets),
        heights=tuple(image.shape[0] for image, _ in samples),
        widths=tuple(image.shape[1] for image, _ in samples),
        labels=tuple(labels),
        keys=tuple(keys),
        positions=tuple(int(key[1:]) for key in keys),
        epochs=(0,) * len(samples),
        valid=tuple(valid),
    )


class Split:
    """Seven samples behind the loader's door."""

    def __init__(self, count=7, reduce_zero_label=True, classes=NAMES):
        self.samples = [_sample(seed) for seed in range(count)]
        self.manifest = SimpleNamespace(
            classes=classes,
            num_samples=count,
            dataset="made",
            split="validation",
            reduce_zero_label=reduce_zero_label,
            shards=("first", "second"),
        )

    def index(self, shard):
        return SimpleNamespace(keys=[f"k{row}" for row in ((0, 1, 2), range(3, len(self.samples)))[shard]])


def _fake_batches(split, *, batch_per_rank, world, threads, max_samples, pin):
    count = min(max_samples or split.manifest.num_samples, split.manifest.num_samples)
    step = batch_per_rank * world.num_ranks
    for first in range(world.rank * batch_per_rank, -(-count // step) * step, step):
        rows = range(first, first + batch_per_rank)
        valid = [row < count for row in rows]
        samples = [split.samples[row if ok else 0] for row, ok in zip(rows, valid, strict=True)]
        yield _batch(samples, [f"k{row}" for row in rows], valid)


@pytest.fixture(autouse=True)
def _loader(monkeypatch):
    monkeypatch.setattr(module, "evaluation_batches", _fake_batches)


def _settings(**kwargs):
    return EvaluationSettings(InferenceSettings(mode="whole", mean=(0, 0, 0), std=(1, 1, 1)), **kwargs)


def _expected(split, count=None):
    cells = np.zeros((3, 3), np.int64)
    for image, label in split.samples[:count]:
        for g, p in zip(label.ravel(), image.argmax(axis=2).ravel(), strict=True):
            if g != 255:
                cells[g, p] += 1
    return score(cells, NAMES, len(split.samples[:count]))


def test_a_split_is_scored_as_by_hand():
    split = Split()
    result = evaluate(ColourSegmenter(), split, _settings(batch_per_rank=2))
    assert np.array_equal(result.confusion, _expected(split).confusion)
    assert result == _expected(split)
    assert 50 < result.miou < 95


@pytest.mark.parametrize("num_ranks", [2, 3, 5, 8])
def test_every_world_counts_every_image_once(num_ranks):
    split, sent = Split(), []
    for rank in range(num_ranks):  # what each rank brings to the sum ...
        with pytest.raises(EvaluationError):
            evaluate(ColourSegmenter(), split, _settings(), world=World(rank, num_ranks), reduce=sent.append)
    assert len(sent) == num_ranks  # ... once

    def all_reduce(tensor):
        tensor.copy_(torch.stack(sent).sum(dim=0))

    result = evaluate(ColourSegmenter(), split, _settings(), world=World(0, num_ranks), reduce=all_reduce)
    assert result == _expected(split)
    assert result.num_images == 7


def test_boundary_and_single_images_on_request():
    split, seen = Split(), []
    result = evaluate(
        ColourSegmenter(), split, _settings(boundary=True, per_image=True, max_samples=5), observe=seen.append
    )
    assert result.boundary_miou is not None
    assert 0 < result.boundary_miou < 100
    assert [one.key for one in result.images] == ["k0", "k1", "k2", "k3", "k4"]
    for one, image in zip(result.images, seen, strict=True):
        assert one.miou == score(image.confusion.numpy(), NAMES, 1).miou


def test_only_the_first_samples_on_request():
    split = Split()
    assert evaluate(ColourSegmenter(), split, _settings(max_samples=3)) == _expected(split, 3)
    assert evaluate(ColourSegmenter(), split, _settings(max_samples=99)).num_images == 7


def test_images_that_went_missing_are_an_error(monkeypatch):
    split = Split()
    monkeypatch.setattr(module, "evaluation_batches", lambda *a, **k: list(_fake_batches(*a, **k))[:-1])
    with pytest.raises(EvaluationError, match="6 images were scored, expected 7"):
        evaluate(ColourSegmenter(), split, _settings())


@pytest.mark.parametrize("training", [True, False])
def test_the_decoder_is_scored_in_eval_mode_and_gets_its_mode_back(training):
    segmenter = ColourSegmenter()
    segmenter.decoder.train(training)
    evaluate(segmenter, Split(2), _settings())
    assert segmenter.modes == [False, False]
    assert segmenter.decoder.training is training
    assert segmenter.decoder.norm.training is training

    segmenter.num_classes = 1  # the labels do not fit any more: an error on the way
    with pytest.raises(ValueError, match="label ids"):
        evaluate(segmenter, Split(1, classes=("one",)), _settings())
    assert segmenter.decoder.training is training


def test_observers_see_each_image_and_progress_counts_the_valid():
    split, seen, done = Split(), [], []
    evaluate(ColourSegmenter(), split, _settings(batch_per_rank=4), observe=seen.append, progress=done.append)
    assert [one.key for one in seen] == [f"k{i}" for i in range(7)]
    assert done == [4, 3]
    for one, (image, label) in zip(seen, split.samples, strict=True):
        assert np.array_equal(one.image, image)
        assert np.array_equal(one.label, np.where(label == 255, IGNORED, label))
        assert np.array_equal(one.prediction, image.argmax(axis=2))
    total = torch.stack([one.confusion for one in seen]).sum(dim=0)
    assert np.array_equal(total, _expected(split).confusion)


def test_mode_is_honoured():
    split = Split(1)
    slide = EvaluationSettings(
        InferenceSettings(mode="slide", crop_px=8, stride_px=4, mean=(0,) * 3, std=(1,) * 3)
    )
    shapes = []

    class Watching(ColourSegmenter):
        def scores(self, images):
            shapes.append(tuple(images.shape[2:]))
            return super().scores(images)

    assert evaluate(Watching(), split, slide) == evaluate(Watching(), split, _settings())
    assert set(shapes[:-1]) == {(8, 8)}
    assert shapes[-1] == split.samples[0][0].shape[:2]


@pytest.mark.parametrize("believed", [None, True, False])
@pytest.mark.parametrize("built", [True, False])
def test_the_zero_label_rule_must_be_that_of_the_shards(believed, built):
    split, settings = Split(1, reduce_zero_label=built), _settings(reduce_zero_label=believed)
    if believed in (None, built):
        assert evaluate(ColourSegmenter(), split, settings) == _expected(split)
    else:
        with pytest.raises(EvaluationError, match=rf"reduce_zero_label={str(built).lower()}; set eval"):
            evaluate(ColourSegmenter(), split, settings)


def test_class_counts_must_agree_and_ranks_need_a_sum():
    with pytest.raises(EvaluationError, match=r"the model has 2 classes, .*'made' \(validation\) have 3"):
        evaluate(ColourSegmenter(2), Split(1), _settings())
    with pytest.raises(EvaluationError, match="2 ranks need"):
        evaluate(ColourSegmenter(), Split(1), _settings(), world=World(0, 2))


def test_settings_come_from_the_configuration():
    config = TrainConfig()
    config.transforms.eval.img_size, config.transforms.eval.tta_ratios = 448, [0.9, 1.1]
    config.eval.crop_size, config.eval.stride, config.num_workers = 224, 149, 3
    config.eval.max_val_samples, config.eval.reduce_zero_label = 10, False
    settings = evaluation_settings(config)
    assert settings.max_samples == 10
    assert settings.threads == 3
    assert settings.reduce_zero_label is False
    inference = settings.inference
    assert (inference.mode, inference.image_px, inference.crop_px, inference.stride_px) == (
        "slide",
        448,
        224,
        149,
    )
    assert (inference.ratios, inference.flip) == ((1.0,), False)

    assert (settings.boundary, settings.per_image) == (False, False)

    config.eval.boundary_iou, config.eval.compute_metric_per_image = True, True
    assert evaluation_settings(config).boundary
    assert evaluation_settings(config).per_image
    config.eval.use_tta = True
    assert (evaluation_settings(config).inference.ratios, evaluation_settings(config).inference.flip) == (
        (0.9, 1.1),
        True,
    )
    config.eval.crop_size = None
    with pytest.raises(EvaluationError, match=r"eval\.crop_size and eval\.stride"):
        evaluation_settings(config)
    config.eval.mode = "whole"
    assert evaluation_settings(config).inference.mode == "whole"


def test_evaluation_and_prediction_are_one_function():
    split = Split(3)
    seen = []
    settings = EvaluationSettings(
        InferenceSettings(image_px=16, crop_px=12, stride_px=8, ratios=(0.9, 1.2), flip=True)
    )
    evaluate(ColourSegmenter(), split, settings, observe=seen.append)
    for one, (image, _) in zip(seen, split.samples, strict=True):
        (alone,) = label_maps(ColourSegmenter(), [torch.from_numpy(image)], settings.inference)
        assert torch.equal(alone, one.prediction)
