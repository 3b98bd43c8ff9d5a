"""What must hold between settings before any work starts, as far as needs no data.

What one key or one section can say about itself stands with it; here is what several have to agree on.
"""

from __future__ import annotations

from maskshards.train.config.data import split_url
from maskshards.train.config.schema import TrainConfig
from maskshards.train.keys import ConfigError, check_section
from maskshards.train.losses.settings import FEATURES
from maskshards.train.model.backbone.architectures import ModelError, architecture
from maskshards.train.model.heads.rules import REFERENCE, head_rules

__all__ = ["check_config", "fitting_side", "side_multiple", "split_url"]


def check_config(config: TrainConfig) -> None:
    """Raise ConfigError for the first setting that cannot work, naming key, value and what would."""
    check_section(config)
    if config.eval.mode == "slide" and config.eval.crop_size is not None:
        check_side(config, "eval.crop_size", config.eval.crop_size)
    if config.load_from is None:
        check_training(config)


def check_training(config: TrainConfig) -> None:
    """What training needs beyond evaluation: a crop that the head can take."""
    train = config.transforms.train
    if train.img_size is None or train.crop_size is None:
        raise ConfigError(
            "training needs transforms.train.img_size and transforms.train.crop_size (height, width)"
        )
    if len(train.crop_size) != 2:
        raise ConfigError(f"transforms.train.crop_size is {list(train.crop_size)}, expected [height, width]")
    for side in train.crop_size:
        check_side(config, "transforms.train.crop_size", side)
    if config.m2f_train.costs_from == FEATURES and config.precision == REFERENCE:
        raise ConfigError(
            "precision=reference is the published code's way, which multiplies the masks of all queries out: "
            "say m2f_train.costs_from=masks with it"
        )
    rules = head_rules(config.decoder_head.type)
    if config.compile_mode == "graph" and not rules.records:
        raise ConfigError(
            f"compile_mode=graph records the step of a head that matches masks; a {rules.name} head's is a "
            "few kernels behind the backbone: say compile=backbone with compile_mode=default"
        )


def check_side(config: TrainConfig, key: str, side_px: int) -> None:
    """ConfigError for a side that backbone and head together cannot take."""
    multiple = side_multiple(config)
    if side_px < 1 or side_px % multiple:
        raise ConfigError(
            f"{key} has a side of {side_px} px, expected multiples of {multiple} for "
            f"{config.model.dino_hub} with head {config.decoder_head.type}; the nearest is "
            f"{fitting_side(side_px, multiple)}"
        )


def side_multiple(config: TrainConfig) -> int:
    """What the sides of a model input must divide by, px."""
    try:
        patch_px = architecture(config.model.dino_hub or "").patch_px
    except ModelError as error:
        raise ConfigError(str(error)) from error
    return head_rules(config.decoder_head.type).size_multiple(patch_px)


def fitting_side(side_px: int, multiple: int) -> int:
    """The multiple nearest to a side, px."""
    return max(1, round(side_px / multiple)) * multiple
