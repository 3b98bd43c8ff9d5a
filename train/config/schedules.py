"""`scheduler.constructor_kwargs`: the keys of each learning rate schedule, by their reference names."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from maskshards.train.keys import ConfigError, nearest

Settings = TypeVar("Settings")


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


def read_one_cycle(given: Mapping[str, Any]) -> OneCycleSettings:
    """The keys of WarmupOneCycleLR; ConfigError for the first that is unknown or cannot be."""
    settings = read_arguments(OneCycleSettings, given)
    if settings.use_beta1 or settings.update_momentum:
        raise ConfigError(
            "scheduler.constructor_kwargs: use_beta1 and update_momentum must be False; "
            "only the rate is scheduled"
        )
    if settings.anneal_strategy not in ("cos", "linear"):
        raise ConfigError(f"anneal_strategy is {settings.anneal_strategy!r}, expected cos or linear")
    if min(settings.div_factor, settings.final_div_factor) < 1 or settings.warmup_iters < 0:
        raise ConfigError("div_factor and final_div_factor must be at least 1, warmup_iters at least 0")
    return settings


def read_decay(given: Mapping[str, Any]) -> DecaySettings:
    """The keys of WarmupPolyLR and WarmupCosineLR; ConfigError for the first that is unknown or cannot be."""
    settings = read_arguments(DecaySettings, given)
    if settings.warmup_iters < 0 or settings.power <= 0:
        raise ConfigError("scheduler.constructor_kwargs: warmup_iters must be at least 0, power above 0")
    if not (0 <= settings.warmup_ratio <= 1 and 0 <= settings.min_ratio <= 1):
        raise ConfigError("scheduler.constructor_kwargs: warmup_ratio and min_ratio must lie in 0..1")
    return settings


READERS = {"WarmupOneCycleLR": read_one_cycle, "WarmupPolyLR": read_decay, "WarmupCosineLR": read_decay}


def read_arguments(kind: type[Settings], given: Mapping[str, Any]) -> Settings:
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
