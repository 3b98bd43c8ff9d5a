"""Score a segmenter on a split of shards: every image once, on any number of ranks.

Labels are scored at the native size of their image. The labels in shards are class ids already: a zero-label
rule ("0 is unlabelled, k is class k - 1") was applied when the shards were built and stands in the manifest.
`eval.reduce_zero_label` therefore changes no label here; it says what the user believes the shards to be, and
is an error where the manifest says otherwise, since every class would be off by one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from maskshards.shards.augment.rasterize import IGNORED, image_of, label_map_of
from maskshards.shards.batch import RaggedBatch
from maskshards.shards.errors import counted
from maskshards.shards.format.manifest import Manifest, Split
from maskshards.shards.loading.evaluation_batches import evaluation_batches
from maskshards.shards.order.order import ALONE, World
from maskshards.train.config.schema import TrainConfig
from maskshards.train.evaluation.accumulator import Tally
from maskshards.train.evaluation.inference import InferenceSettings, label_maps
from maskshards.train.evaluation.metrics import EvalResult
from maskshards.train.model.segmenter import Segmenter


class EvaluationError(ValueError):
    """The model, the settings and the shards do not fit together, or images went missing."""


@dataclass(frozen=True, slots=True)
class EvaluationSettings:
    """What to score, and how."""

    inference: InferenceSettings
    batch_per_rank: int = 1  # images that go through the model together (their windows do)
    threads: int = 2  # that read and decode
    max_samples: int | None = None  # the first so many of the split; None: all
    reduce_zero_label: bool | None = None  # what the shards must have been built with; None: either
    boundary: bool = False  # also boundary IoU
    per_image: bool = False  # also the scores of every single image


@dataclass(frozen=True, slots=True)
class Observation:
    """One evaluated image, for those who want to look at it; tensors on the evaluation's device."""

    key: str
    image: Tensor  # (H, W, 3) uint8 RGB
    label: Tensor  # (H, W) int64 class ids, IGNORED where unlabelled
    prediction: Tensor  # (H, W) int64 class ids
    confusion: Tensor  # (K, K) int64 of this image alone


def evaluation_settings(config: TrainConfig) -> EvaluationSettings:
    """What a configuration's `eval` and `transforms` sections ask for."""
    wanted = config.eval
    inference = InferenceSettings(
        mode=wanted.mode,
        image_px=config.transforms.eval.img_size,
        ratios=tuple(config.transforms.eval.tta_ratios) if wanted.use_tta else (1.0,),
        flip=wanted.use_tta,
        mean=tuple(config.transforms.mean),
        std=tuple(config.transforms.std),
        **_window(config),
    )
    return EvaluationSettings(
        inference,
        threads=config.num_workers,
        max_samples=wanted.max_val_samples,
        reduce_zero_label=wanted.reduce_zero_label,
        boundary=wanted.boundary_iou,
        per_image=wanted.compute_metric_per_image,
    )


def _window(config: TrainConfig) -> dict[str, int]:
    if config.eval.mode != "slide":
        return {}
    if config.eval.crop_size is None or config.eval.stride is None:
        raise EvaluationError(
            f"eval.mode=slide needs eval.crop_size and eval.stride, found {config.eval.crop_size} and "
            f"{config.eval.stride}; give both, or say eval.mode=whole"
        )
    return {"crop_px": config.eval.crop_size, "stride_px": config.eval.stride}


def evaluate(
    segmenter: Segmenter,
    split: Split,
    settings: EvaluationSettings,
    *,
    world: World = ALONE,
    device: torch.device | str = "cpu",
    autocast_dtype: torch.dtype | None = None,
    reduce: Callable[[Tensor], object] | None = None,
    observe: Callable[[Observation], None] | None = None,
    progress: Callable[[int], None] | None = None,
) -> EvalResult:
    """Scores of the whole split (or its first `max_samples`), the same on every rank.

    `reduce` sums one int64 tensor over the ranks in place; with more than one rank it is called exactly
    once. `observe` sees every image of this rank, `progress` the number of images just done. The decoder is
    put into eval mode and back into the mode it was in. Raises EvaluationError where model and shards do
    not fit or the number of images counted is not the number asked for.
    """
    check_fit(segmenter.num_classes, split.manifest, settings)
    if world.num_ranks > 1 and reduce is None:
        raise EvaluationError(f"{world.num_ranks} ranks need a `reduce` that sums over them")
    expected = num_expected(split.manifest, settings)
    tally = Tally(
        segmenter.num_classes,
        expected,
        device,
        ignored=IGNORED,
        boundary=settings.boundary,
        per_image=settings.per_image,
    )
    batches = evaluation_batches(
        split,
        batch_per_rank=settings.batch_per_rank,
        world=world,
        threads=settings.threads,
        max_samples=settings.max_samples,
        pin=torch.device(device).type == "cuda",
    )
    with _eval_mode(segmenter):
        for batch in batches:
            batch = batch.to(device)
            _score_batch(segmenter, batch, settings, autocast_dtype, tally, observe)
            if progress:
                progress(sum(batch.valid))
    if reduce is not None:
        tally.reduce(reduce)
    if tally.matrix.num_images != expected:
        raise EvaluationError(
            f"{tally.matrix.num_images} images were scored, expected {expected} of the split's "
            f"{split.manifest.num_samples}; every image must count exactly once"
        )
    return tally.result(split.manifest.classes, first_keys(split, expected) if settings.per_image else [])


def num_expected(manifest: Manifest, settings: EvaluationSettings) -> int:
    """How many images an evaluation counts over all ranks."""
    if settings.max_samples is None:
        return manifest.num_samples
    return min(settings.max_samples, manifest.num_samples)


def first_keys(split: Split, count: int) -> list[str]:
    """Keys of the split's first `count` samples, in the order of the shards."""
    keys: list[str] = []
    for shard in range(len(split.manifest.shards)):
        if len(keys) >= count:
            break
        keys.extend(split.index(shard).keys)
    return keys[:count]


def check_fit(num_classes: int, manifest: Manifest, settings: EvaluationSettings) -> None:
    """EvaluationError unless the manifest has the model's classes and the believed zero-label rule."""
    if len(manifest.classes) != num_classes:
        raise EvaluationError(
            f"the model has {counted(num_classes, 'class')}, the shards of "
            f"{manifest.dataset!r} ({manifest.split}) have {len(manifest.classes)}; set "
            f"decoder_head.num_classes={len(manifest.classes)}, train on "
            "these shards, or evaluate on shards of the data set that the model was trained on"
        )
    believed, found = settings.reduce_zero_label, manifest.reduce_zero_label
    if believed is not None and believed != found:
        raise EvaluationError(
            f"eval.reduce_zero_label is {str(believed).lower()}, but the shards of {manifest.dataset!r} "
            f"({manifest.split}) were built with reduce_zero_label={str(found).lower()}; set "
            f"eval.reduce_zero_label={str(found).lower()}, or build the shards again with the other rule"
        )


def _score_batch(
    segmenter: Segmenter,
    batch: RaggedBatch,
    settings: EvaluationSettings,
    autocast_dtype: torch.dtype | None,
    tally: Tally,
    observe: Callable[[Observation], None] | None,
) -> None:
    rows = [i for i, valid in enumerate(batch.valid) if valid]
    if not rows:
        return
    images = [image_of(batch, i) for i in rows]
    predictions = label_maps(segmenter, images, settings.inference, autocast_dtype)
    for i, image, prediction in zip(rows, images, predictions, strict=True):
        label = label_map_of(batch, i)
        confusion = tally.update(batch.positions[i], prediction, label)
        if observe is not None:
            observe(Observation(batch.keys[i], image, label, prediction, confusion))


@contextmanager
def _eval_mode(segmenter: Segmenter) -> Iterator[None]:
    was_training = segmenter.decoder.training
    segmenter.decoder.eval()
    try:
        yield
    finally:
        segmenter.decoder.train(was_training)
