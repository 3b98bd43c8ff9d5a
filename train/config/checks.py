"""What must hold between settings before any work starts, as far as needs no data."""

from __future__ import annotations

import math
from typing import Any

from maskshards.shards.augment.crop import LSJ_RATIO
from maskshards.shards.augment.photometric import PRESETS
from maskshards.train.config.schema import (
    BackboneLayers,
    ConfigError,
    DecoderConfig,
    ModelConfig,
    TrainConfig,
    nearest,
)

STRIDE_PX = 32  # the adapter's coarsest map is 1/32 of the crop, so a side must divide by it
DECODERS = ("m2f", "linear")
LSJ = "lsj"
JITTERS = ("short_side", "fit", LSJ)
MODES = ("slide", "whole")
COMPILED = ("none", "backbone", "model")
COMPILE_MODES = ("default", "reduce-overhead", "max-autotune")
METRICS = ("mIoU", "acc", "aAcc", "dice", "fscore", "precision", "recall")
SPLIT_OF_WORD = {"TRAIN": "training", "VAL": "validation"}


def check_config(config: TrainConfig) -> None:
    """Raise ConfigError for the first setting that cannot work, naming key, value and what would."""
    check_model(config.model)
    check_decoder(config.decoder_head)
    check_words(config)
    check_numbers(config)
    check_multipliers(config.optimizer.lr_multipliers)
    check_transforms(config)
    check_evaluation(config)
    if config.load_from is None:
        check_training(config)


def check_model(model: ModelConfig) -> None:
    if model.config_file is not None:
        raise ConfigError(
            "model.config_file is not used here; name the architecture by model.dino_hub=dinov3_vitl16"
        )
    if model.dino_hub is None:
        raise ConfigError(
            "model.dino_hub is not set; name the backbone, for example model.dino_hub=dinov3_vitl16"
        )
    if model.weights is not None and model.pretrained_weights not in (None, model.weights):
        raise ConfigError(
            f"model.weights={model.weights} and model.pretrained_weights={model.pretrained_weights} "
            "name different weights; they are two words for one thing, give one"
        )


def check_decoder(decoder: DecoderConfig) -> None:
    if decoder.type not in DECODERS:
        raise ConfigError(f"decoder_head.type is {decoder.type!r}, expected one of {', '.join(DECODERS)}")
    for name, only in (("use_batchnorm", True), ("use_cls_token", False), ("use_backbone_norm", True)):
        if getattr(decoder, name) is not only:
            raise ConfigError(
                f"decoder_head.{name}={not only} does not exist: the heads are always built with {only}"
            )
    if decoder.num_classes < 1:
        raise ConfigError(f"decoder_head.num_classes is {decoder.num_classes}, expected at least 1")
    if not 0 <= decoder.dropout < 1:
        raise ConfigError(f"decoder_head.dropout is {decoder.dropout}, expected 0 <= dropout < 1")
    if decoder.type == "m2f":
        if decoder.backbone_out_layers is BackboneLayers.LAST:
            raise ConfigError(
                "decoder_head.backbone_out_layers=LAST gives one map, but the m2f head needs four: "
                "say FOUR_EVEN_INTERVALS or FOUR_LAST"
            )
        if decoder.hidden_dim < 32 or decoder.hidden_dim % 32:
            raise ConfigError(
                f"decoder_head.hidden_dim is {decoder.hidden_dim}, expected a multiple of 32 "
                "(32 normalisation groups, 16 heads)"
            )


def check_words(config: TrainConfig) -> None:
    """At most one of the three checkpoint words, and the metric by which the best checkpoint is chosen."""
    given = [word for word in ("load_from", "init_from", "resume_from") if getattr(config, word) is not None]
    if "load_from" in given and len(given) > 1:
        raise ConfigError(
            f"{' and '.join(given)} exclude each other: load_from evaluates, the other two train"
        )
    if given == ["init_from", "resume_from"] and config.resume_from != "auto":
        raise ConfigError(
            "init_from starts a run and resume_from continues one; "
            "only resume_from=auto may stand beside init_from"
        )
    if config.metric_to_save not in METRICS:
        raise ConfigError(
            f"metric_to_save={config.metric_to_save!r}: {nearest(config.metric_to_save, list(METRICS))}"
        )
    if config.output_dir is None:
        raise ConfigError("output_dir is not set; say output_dir=FOLDER, where the run's files go")


def check_numbers(config: TrainConfig) -> None:
    positive = {
        "bs": config.bs,
        "step_timeout_s": config.step_timeout_s,
        "n_gpus": config.n_gpus,
        "num_workers": config.num_workers,
        "global_batch": config.global_batch,
        "scheduler.total_iter": config.scheduler.total_iter,
        "eval.eval_interval": config.eval.eval_interval,
        "eval.max_val_samples": config.eval.max_val_samples,
        "checkpoint.interval": config.checkpoint.interval,
        "checkpoint.keep_last": config.checkpoint.keep_last,
        "checkpoint.archive_interval": config.checkpoint.archive_interval,
        "log.interval": config.log.interval,
        "loader.prefetch_batches": config.loader.prefetch_batches,
        "loader.cache_gb": config.loader.cache_gb,
        "datasets.repeat_threshold": config.datasets.repeat_threshold,
        "guards.max_skipped": config.guards.max_skipped,
        "m2f_train.num_points": config.m2f_train.num_points,
        "decoder_head.ffn_dim": config.decoder_head.ffn_dim,
        "decoder_head.num_queries": config.decoder_head.num_queries,
        "optimizer.lr": config.optimizer.lr,
        "optimizer.gradient_clip": config.optimizer.gradient_clip,
    }
    for key, value in positive.items():
        if value is not None and (math.isnan(value) or value <= 0):
            raise ConfigError(f"{key} is {value}, expected a number above 0")
    if config.optimizer.weight_decay < 0:
        raise ConfigError(f"optimizer.weight_decay is {config.optimizer.weight_decay}, expected at least 0")
    decay = config.ema.decay
    if decay is not None and not 0 <= decay < 1:
        raise ConfigError(f"ema.decay is {decay}, expected 0 <= decay < 1 (or nothing, for no average)")
    for key, beta in (("beta1", config.optimizer.beta1), ("beta2", config.optimizer.beta2)):
        if not 0 <= beta < 1:
            raise ConfigError(f"optimizer.{key} is {beta}, expected 0 <= {key} < 1")
    words = {
        "guards.non_finite": (config.guards.non_finite, ("stop", "skip")),
        "loader.decode": (config.loader.decode, ("cpu", "gpu")),
        "loader.policy": (config.loader.policy, ("raise", "replace")),
        "precision": (config.precision, ("mixed", "reference")),
        "compile": (config.compile, COMPILED),
        "compile_mode": (config.compile_mode, COMPILE_MODES),
    }
    for key, (word, known) in words.items():
        if word not in known:
            raise ConfigError(f"{key} is {word!r}, expected {' or '.join(known)}")
    if config.compile == "none" and config.compile_mode != "default":
        raise ConfigError(
            f"compile_mode={config.compile_mode} changes nothing with compile=none; "
            "say compile=model (or backbone) too"
        )
    if config.seed < 0:
        raise ConfigError(f"seed is {config.seed}, expected 0 or more")


def check_multipliers(multipliers: dict[str, Any]) -> None:
    """The schema says that they are floats, but OmegaConf lets nested mappings and lists through."""
    for name, factor in multipliers.items():
        if not name:
            raise ConfigError(
                "optimizer.lr_multipliers: a factor without a name; say for example "
                "optimizer.lr_multipliers.segmentation_model.0=0.5"
            )
        if not isinstance(factor, float) or not 0 < factor < math.inf:
            raise ConfigError(
                f"optimizer.lr_multipliers: {name} is {factor!r}, expected a number above 0; the beginning "
                "of a parameter's name is one key, dots and all ({segmentation_model.0: 0.5})"
            )


def check_transforms(config: TrainConfig) -> None:
    for name in ("mean", "std"):
        values = getattr(config.transforms, name)
        if len(values) != 3 or (name == "std" and min(values) <= 0):
            raise ConfigError(
                f"transforms.{name} is {list(values)}, expected three values on the 0..255 scale, std above 0"
            )
    train = config.transforms.train
    ratio = train.random_img_size_ratio_range
    if ratio is not None and (len(ratio) != 2 or not 0 < ratio[0] <= ratio[1]):
        raise ConfigError(
            f"transforms.train.random_img_size_ratio_range is {list(ratio)}, "
            "expected [low, high] with 0 < low <= high"
        )
    words = {"photometric": (train.photometric, tuple(PRESETS)), "jitter": (train.jitter, JITTERS)}
    for key, (word, known) in words.items():
        if word not in known:
            raise ConfigError(f"transforms.train.{key} is {word!r}, expected one of {', '.join(known)}")
    if train.jitter == LSJ and ratio is not None and tuple(ratio) != LSJ_RATIO:
        raise ConfigError(
            f"transforms.train.jitter=lsj has the published range {list(LSJ_RATIO)}, and "
            f"transforms.train.random_img_size_ratio_range is {list(ratio)}; set that to null, or say "
            "transforms.train.jitter=fit to keep it"
        )
    if not 0 <= train.flip_prob <= 1:
        raise ConfigError(f"transforms.train.flip_prob is {train.flip_prob}, expected 0 to 1")


def check_training(config: TrainConfig) -> None:
    """What training needs beyond evaluation: a crop that the head can take, and terms that exist."""
    train, multiple = config.transforms.train, side_multiple(config)
    if train.img_size is None or train.crop_size is None:
        raise ConfigError(
            "training needs transforms.train.img_size and transforms.train.crop_size (height, width)"
        )
    if len(train.crop_size) != 2 or any(side < 1 or side % multiple for side in train.crop_size):
        raise ConfigError(
            f"transforms.train.crop_size is {list(train.crop_size)}, expected height and width "
            f"that are multiples of {multiple} for {config.model.dino_hub}; the nearest are "
            f"{[fitting_side(side, multiple) for side in train.crop_size]}"
        )
    if not config.datasets.train:
        raise ConfigError("datasets.train is not set; name the split, for example datasets.train=training")
    if config.decoder_head.type == "linear" and config.train.diceloss_weight:
        raise ConfigError(
            "train.diceloss_weight: the linear head trains with cross entropy only; set it to 0"
        )


def check_evaluation(config: TrainConfig) -> None:
    settings, transform = config.eval, config.transforms.eval
    if not config.datasets.val:
        raise ConfigError("datasets.val is not set; name the split, for example datasets.val=validation")
    if settings.mode not in MODES:
        raise ConfigError(f"eval.mode is {settings.mode!r}, expected one of {', '.join(MODES)}")
    if transform.img_size is None or transform.img_size < 1:
        raise ConfigError(
            f"transforms.eval.img_size is {transform.img_size}, expected the short side in pixels"
        )
    if not transform.tta_ratios or min(transform.tta_ratios) <= 0:
        raise ConfigError(
            f"transforms.eval.tta_ratios is {list(transform.tta_ratios)}, expected ratios above 0"
        )
    if settings.mode == "slide":
        crop, stride = settings.crop_size, settings.stride
        if crop is None or stride is None or not 0 < stride <= crop:
            raise ConfigError(
                f"eval.mode=slide needs 0 < eval.stride <= eval.crop_size, found stride {stride}, crop {crop}"
            )
        multiple = side_multiple(config)
        if crop % multiple:
            raise ConfigError(
                f"eval.crop_size is {crop}, expected a multiple of {multiple} for {config.model.dino_hub}; "
                f"the nearest is {fitting_side(crop, multiple)}"
            )


def side_multiple(config: TrainConfig) -> int:
    """What a crop side must divide by: the patch for the linear head, patch and adapter stride for m2f."""
    name = config.model.dino_hub or ""
    patch_px = 14 if name.endswith("14") else 16
    return patch_px if config.decoder_head.type == "linear" else math.lcm(patch_px, STRIDE_PX)


def fitting_side(side: int, multiple: int) -> int:
    return max(1, round(side / multiple)) * multiple


def split_url(root: str, descriptor: str) -> str:
    """Where the split lies.

    `descriptor` is a URL or absolute path, a split's name under `root`, or the reference's
    `NAME:split=TRAIN|VAL`.
    """
    if "://" in descriptor or descriptor.startswith("/"):
        return descriptor
    name, _, rest = descriptor.partition(":")
    if rest:
        key, _, word = rest.partition("=")
        if key != "split" or not word:
            raise ConfigError(
                f"data set {descriptor!r} is no split name, URL or NAME:split=TRAIN|VAL descriptor: "
                f"after {name!r} stands {key!r}, expected split=..."
            )
        descriptor = SPLIT_OF_WORD.get(word.upper(), word)
    return f"{root.rstrip('/')}/{descriptor}"
