"""Learning rate as a pure function of the optimiser steps already taken; nothing to save, nothing to restore.

`WarmupOneCycleLR` follows the formula of the public DINOv3 segmentation code (facebookresearch/dinov3).
Two traits of that formula are kept on purpose and worth knowing: the cosine spans all `total_iter`
steps, not those after the warm-up, and the rate jumps at the end of the warm-up, where (1 - s/T) hands
over to the cosine. One trait of its training loop is not kept: there the first two steps both use s = 0;
here step i (from 0) always uses s = i.

`WarmupPolyLR` and `WarmupCosineLR` warm up linearly over the first steps and decay over the rest,
without a jump.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

from maskshards.train.config.schedules import DecaySettings, OneCycleSettings, read_decay, read_one_cycle
from maskshards.train.config.schema import ConfigError, SchedulerConfig

logger = logging.getLogger(__name__)

Schedule = Callable[[int], float]  # steps taken so far -> factor on a group's full learning rate


def build_schedule(config: SchedulerConfig) -> Schedule:
    """The factor function that `config` describes; ConfigError for an unknown type or argument."""
    if config.type not in MAKERS:
        raise ConfigError(f"scheduler.type is {config.type!r}, expected one of {', '.join(MAKERS)}")
    warmup = config.constructor_kwargs.get("warmup_iters", 0)
    if isinstance(warmup, int) and warmup >= config.total_iter:
        message = "the warm-up of %d steps outlasts the run of %d: little will be learnt"
        logger.warning(message, warmup, config.total_iter)
    return MAKERS[config.type](config)


def one_cycle(config: SchedulerConfig) -> Schedule:
    settings = read_one_cycle(config.constructor_kwargs)
    total = config.total_iter
    return lambda step: one_cycle_factor(step, total, settings)


def one_cycle_factor(step: int, total: int, settings: OneCycleSettings) -> float:
    """Share of the full rate after `step` of `total` steps (s and T of the formula)."""
    check_step(step, total)
    warmup, ratio = settings.warmup_iters, settings.warmup_ratio
    floor = 1 / (settings.div_factor * settings.final_div_factor)  # 0 for an infinite final_div_factor
    if step < warmup and ratio > 0:
        return (1 - (1 - step / warmup) * (1 - ratio)) * (1 - step / total)
    if step < warmup:
        return 1 / settings.final_div_factor + step / warmup * (1 + math.cos(math.pi * step / total)) / 2
    if settings.anneal_strategy == "linear":
        return 1 + (floor - 1) * step / total
    return floor + (1 - floor) * (1 + math.cos(math.pi * (step + 1) / total)) / 2


def poly(config: SchedulerConfig) -> Schedule:
    settings, total = read_decay(config.constructor_kwargs), config.total_iter
    return lambda step: decay_factor(step, total, settings, lambda share: (1 - share) ** settings.power)


def cosine(config: SchedulerConfig) -> Schedule:
    settings, total = read_decay(config.constructor_kwargs), config.total_iter
    return lambda step: decay_factor(step, total, settings, lambda share: (1 + math.cos(math.pi * share)) / 2)


def decay_factor(step: int, total: int, settings: DecaySettings, shape: Callable[[float], float]) -> float:
    """Linear from warmup_ratio to 1 over the warm-up, then `shape` from 1 towards min_ratio."""
    check_step(step, total)
    warmup = settings.warmup_iters
    if step < warmup:
        return settings.warmup_ratio + (1 - settings.warmup_ratio) * step / warmup
    share = (step - warmup) / (total - warmup)
    return settings.min_ratio + (1 - settings.min_ratio) * shape(share)


MAKERS: dict[str, Callable[[SchedulerConfig], Schedule]] = {
    "WarmupOneCycleLR": one_cycle,
    "WarmupPolyLR": poly,
    "WarmupCosineLR": cosine,
}


def check_step(step: int, total: int) -> None:
    if not 0 <= step < total:
        raise ValueError(f"a schedule of {total} steps has no learning rate after step {step}")
