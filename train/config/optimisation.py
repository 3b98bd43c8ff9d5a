"""The keys of learning: loss of the linear head, optimiser, schedule, average, guards."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from maskshards.train.config.schedules import READERS
from maskshards.train.keys import ConfigError, key

STOP, SKIP = "stop", "skip"  # what is done about a step that is not finite


@dataclass
class SchedulerConfig:
    """`scheduler`: the learning rate over the run."""

    type: str = key("WarmupOneCycleLR", "shape of the curve", one_of=tuple(READERS))
    total_iter: int = key(40000, "optimiser steps", at_least=1)
    constructor_kwargs: dict[str, Any] = key({}, "the schedule's own keys (docs/training.md)")

    def check(self) -> None:
        """ConfigError for a key that the schedule lacks, or a value that it cannot take."""
        if self.type in READERS:
            READERS[self.type](self.constructor_kwargs)


@dataclass
class OptimizerConfig:
    """`optimizer`: AdamW."""

    lr: float = key(1e-3, "learning rate", above=0)
    beta1: float = key(0.9, "decay of the mean of gradients", at_least=0, below=1)
    beta2: float = key(0.999, "decay of the mean of squared gradients", at_least=0, below=1)
    weight_decay: float = key(1e-2, "on matrices and kernels only", at_least=0)
    gradient_clip: float = key(
        35.0, "largest global norm of the gradient; inf: never clip", above=0, may_be_infinite=True
    )
    lr_multipliers: dict[str, float] = key(
        {}, "beginning of a parameter's name -> factor on lr, the longest that fits counts"
    )

    def check(self) -> None:
        """The schema says that factors are floats, but OmegaConf lets nested mappings and lists through."""
        for name, factor in self.lr_multipliers.items():
            if not name:
                raise ConfigError(
                    "optimizer.lr_multipliers: a factor without a name; say for example "
                    "optimizer.lr_multipliers.segmentation_model.0=0.5"
                )
            if not isinstance(factor, float) or not 0 < factor < math.inf:
                raise ConfigError(
                    f"optimizer.lr_multipliers: {name} is {factor!r}, expected a number above 0; the "
                    "beginning of a parameter's name is one key, dots and all ({segmentation_model.0: 0.5})"
                )


@dataclass
class LinearLossConfig:
    """`train`: the loss of the linear head."""

    diceloss_weight: float = key(0.0, "always 0: the linear head has cross entropy only")
    celoss_weight: float = key(1.0, "weight of the linear head's cross entropy", above=0)

    def check(self) -> None:
        """ConfigError for a term that does not exist."""
        if self.diceloss_weight:
            raise ConfigError(
                "train.diceloss_weight: the linear head trains with cross entropy only; set it to 0"
            )


@dataclass
class EmaConfig:
    """`ema`: a moving average of the weights."""

    decay: float | None = key(
        None, "of the average that is scored and exported; null: no average", at_least=0, below=1
    )


@dataclass
class GuardConfig:
    """`guards`: what to do about a step whose gradient is not finite."""

    non_finite: str = key(STOP, "stop the run, or skip the step", one_of=(STOP, SKIP))
    max_skipped: int = key(10, "steps that skip may leave out in one process's life", at_least=1)
