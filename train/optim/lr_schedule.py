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
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from maskshards.train.config.schema import ConfigError, SchedulerConfig, nearest

logger = logging.getLogger(__name__)

Settings = TypeVar("Settings")
Schedule = Callable[[int], float]  # steps taken so far -> factor on a group's full learning rate


@dataclass(frozen=True, slots=True)
class OneCycleSettings:
    """`scheduler.constructor_kwargs` of WarmupOneCycleLR, by their reference names."""

    warmup_iters: int = 0
    warmup_ratio: float = 0.0
    pct_start: float = 0.0  # accepted for compatibility: the formula does not contain it
    anneal_strategy: str = "cos"  # cos | linear
    div_factor: float = 25.0
    final_div_factor: float = 1000.0
    use_beta1: bool = (
        False  # annealing beta1 and momentum is not offered: every published recipe turns both off
    )
    update_momentum: bool = False


@dataclass(frozen=True, slots=True)
class DecaySettings:
    """`scheduler.constructor_kwargs` of WarmupPolyLR and WarmupCosineLR."""

    warmup_iters: int = 0
    warmup_ratio: float = 1e-6  # share of the full rate at the first step
    min_ratio: float = 0.0  # share of the full rate that the decay ends on
    power: float = 0.9  # of the polynomial only


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
    settings = read_arguments(OneCycleSettings, config.constructor_kwargs)
    if settings.use_beta1 or settings.update_momentum:
        raise ConfigError(
            "scheduler.constructor_kwargs: use_beta1 and update_momentum must be False; "
            "only the rate is scheduled"
        )
    if settings.anneal_strategy not in ("cos", "linear"):
        raise ConfigError(f"anneal_strategy is {settings.anneal_strategy!r}, expected cos or linear")
    if min(settings.div_factor, settings.final_div_factor) < 1 or settings.warmup_iters < 0:
        raise ConfigError("div_factor and final_div_factor must be at least 1, warmup_iters at least 0")
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
    settings, total = read_decay(config), config.total_iter
    return lambda step: decay_factor(step, total, settings, lambda share: (1 - share) ** settings.power)


def cosine(config: SchedulerConfig) -> Schedule:
    settings, total = read_decay(config), config.total_iter
    return lambda step: decay_factor(step, total, settings, lambda share: (1 + math.cos(math.pi * share)) / 2)


def read_decay(config: SchedulerConfig) -> DecaySettings:
    settings = read_arguments(DecaySettings, config.constructor_kwargs)
    if settings.warmup_iters < 0 or settings.power <= 0:
        raise ConfigError("scheduler.constructor_kwargs: warmup_iters must be at least 0, power above 0")
    if not (0 <= settings.warmup_ratio <= 1 and 0 <= settings.min_ratio <= 1):
        raise ConfigError("scheduler.constructor_kwargs: warmup_ratio and min_ratio must lie in 0..1")
    return settings


def decay_factor(step: int, total: int, settings: DecaySettings, shape: Callable[[float], float]) -> float:
    """Linear from warmup_ratio to 1 over the warm-up, then `shape` from 1 towards min_ratio over what
    remains.
    """
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


def read_arguments(kind: type[Settings], given: dict[str, Any]) -> Settings:
    """`given` as a settings dataclass; ConfigError names an unknown key with the nearest, or a wrong type."""
    types = {entry.name: entry.type for entry in fields(kind)}  # type: ignore[arg-type]
    converted: dict[str, Any] = {}
    for name, value in given.items():
        place = f"scheduler.constructor_kwargs.{name}"
        if name not in types:
            raise ConfigError(f"{place}: no such argument; {nearest(name, list(types))}")
        converted[name] = convert(value, str(types[name]), place)
    return kind(**converted)


def convert(value: Any, kind: str, place: str) -> Any:
    """`value` as the named type; YAML gives `inf` and some floats as strings."""
    if kind == "bool" and isinstance(value, bool):
        return value
    if kind == "str" and isinstance(value, str):
        return value
    if kind in ("int", "float") and isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if kind == "float" and not math.isnan(number):
            return number
        if kind == "int" and number.is_integer():
            return int(number)
    raise ConfigError(f"{place} is {value!r}, expected {kind}")
