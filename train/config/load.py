"""Command line and YAML to one checked `TrainConfig`: defaults < the file behind `config=` < `key=value`.

A key that does not exist is an error that names the nearest one: no typo trains for a day with a default.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import logging
import math
import os
import shlex
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from maskshards.shards.errors import printable
from maskshards.shards.process import check_working_folder
from maskshards.shards.storage.atomic_write import replacing
from maskshards.train.config.checks import check_config
from maskshards.train.config.plain_values import YAML_ERRORS, check_plain, read_plain_text
from maskshards.train.config.recipes import find_recipe, packaged_recipes
from maskshards.train.config.schema import TrainConfig
from maskshards.train.config.typed_words import MULTIPLIERS, as_typed, hints_of, misfit, multiplier
from maskshards.train.keys import ConfigError, nearest

logger = logging.getLogger(__name__)

# Keys of older versions, which their checkpoints and recipes still hold -> the value that changed nothing.
RETIRED = {"channels_last": False}
FREE_FORM = (
    "scheduler.constructor_kwargs",
    "optimizer.lr_multipliers",
)  # dictionaries whose keys their reader checks, not the schema
RESERVED = "config"
WRITTEN = "config.yaml"  # in the folder of a run
SHORT = {"data": "datasets.root", "out": "output_dir", "--output-dir": "output_dir"}  # other words for keys
PLACES = (  # keys whose text may be a local path; `~` is the home folder in all of them
    "output_dir", "load_from", "init_from", "resume_from", "datasets.root", "datasets.train", "datasets.val",
    "loader.cache_dir", "model.weights", "model.pretrained_weights",
)  # fmt: skip
MEANT = {  # sections whose name other tools give to one value -> what to say here
    "checkpoint": "; weights to evaluate are load_from=..., weights to start from init_from=..."
}
LEARNING_RATE = "it is optimizer.lr here"
WHOLE = "a recipe names no other; copy that one's keys into it"
STEPS = "a run is counted in optimiser steps: scheduler.total_iter"
MICRO_STEPS = "global_batch=... is reached by as many micro-steps of bs images as it takes"
ELSEWHERE = {  # words of other tools that are no key -> how the same is had here
    "epochs": STEPS, "num_epochs": STEPS, "max_epochs": STEPS,
    "gradient_accumulation": MICRO_STEPS, "accumulate_grad_batches": MICRO_STEPS,
    "fp16": "say model_dtype", "amp": "say model_dtype",
    "device": "training takes the CUDA devices that it sees, else the CPU",
    "world_size": "a process for each GPU: torchrun --nproc-per-node N --no-python maskshards train ...",
    "learning_rate": LEARNING_RATE, "optimizer.learning_rate": LEARNING_RATE,
    "batch_size": "bs=... is what a process takes at once, global_batch=... what a step takes",
    "config": WHOLE, "defaults": WHOLE, "_base_": WHOLE,
}  # fmt: skip
KEPT_ABSOLUTE = (  # where there is such a file or folder, it is found again from anywhere
    "datasets.root", "model.weights", "model.pretrained_weights", "load_from", "init_from",
)  # fmt: skip
ALWAYS_PATHS = ("loader.cache_dir",)  # whether they are there yet or not


def load_config(argv: list[str]) -> TrainConfig:
    """`argv` as in `config=FILE key=value section.key=value ...`, merged and checked as far as needs no data.

    Raises ConfigError for unknown keys, wrong types, missing required keys and settings that contradict, and
    StoreError where the working folder is gone.
    """
    check_working_folder()
    arguments, recipe = split_arguments(argv)
    merged = merge(read_recipe(recipe) if recipe else {}, arguments)
    settle_places(merged)
    config = to_config(merged)
    check_config(config)
    return config


def split_arguments(argv: list[str]) -> tuple[list[str], Path | None]:
    """The dot-list without `config=`, and the recipe's path if one is named."""
    arguments, recipe = [], None
    for argument in argv:
        if not argument.isprintable() and argument != argument.encode(errors="replace").decode():
            raise ConfigError(f"argument {argument!r} holds bytes that are no UTF-8; no file could keep them")
        if "=" not in argument:
            raise ConfigError(f"argument {argument!r} is not of the form key=value {_meant_by(argument)}")
        key, value = argument.split("=", 1)
        if key == RESERVED:
            if recipe is not None and find_recipe(value) != recipe:
                raise ConfigError(f"config= is given twice ({recipe} and {value}); a run has one recipe")
            recipe = find_recipe(value)
        else:
            arguments.append(f"{SHORT.get(key, key)}={value}")
    return arguments, recipe


def _meant_by(argument: str) -> str:
    """What a word without `=` was probably meant to be."""
    if argument.startswith("--"):
        return f"(keys take no dashes: {argument.lstrip('-')}=...)"
    if argument.endswith((".yaml", ".yml")) or argument in packaged_recipes():
        return f"(a recipe is config={argument})"
    return "(for example optimizer.lr=1e-4)"


def settle_places(merged: DictConfig) -> None:
    """Expand `~` in every key that may be a path, and make absolute what must be found from elsewhere later.

    Other words in the same keys (hub ids, URLs, `random`, `auto`, names of splits) stay as they are.
    """
    for key in PLACES:
        value = OmegaConf.select(merged, key, throw_on_missing=False)
        if not isinstance(value, str):
            continue
        if value.startswith("~"):
            OmegaConf.update(merged, key, os.path.expanduser(value))  # an unknown ~user stays
        elif key in ALWAYS_PATHS or (key in KEPT_ABSOLUTE and value != "random" and os.path.exists(value)):
            OmegaConf.update(merged, key, str(Path(value).absolute()))


def read_recipe(path: Path) -> dict[str, Any]:
    """The YAML mapping in `path`; ConfigError if it is missing, unreadable or no mapping."""
    if not path.exists():
        beside = sorted(file.name for file in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        hint = f"; {path.parent} has {', '.join(beside)}" if beside else ""
        raise ConfigError(f"config file {path} does not exist{hint}")
    try:
        content = OmegaConf.to_container(OmegaConf.load(io.StringIO(read_plain_text(path))))
    except ConfigError:
        raise
    except (OmegaConfBaseException, OSError, *YAML_ERRORS) as error:
        hint = "; indent by spaces, not by tabs" if r"'\t'" in str(error) else ""
        raise ConfigError(f"config file {path} cannot be read as YAML: {error}{hint}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"config file {path} holds a {type(content).__name__}, expected key: value pairs")
    return own_settings(typing.cast(dict[str, Any], content), f"config file {path}")


def own_settings(content: dict[str, Any], where: str) -> dict[str, Any]:
    """`content` of a recipe or of a checkpoint, without retired keys; ConfigError for what is no setting.

    `where` names the source in errors.
    """
    check_plain(content, where)
    kept = without_retired(content, where)
    check_keys(kept, where)
    return kept


def without_retired(content: dict[str, Any], where: str) -> dict[str, Any]:
    """`content` without keys that older versions wrote and nothing reads now; warns where one was set."""
    for key in content.keys() & RETIRED.keys():
        if content[key] != RETIRED[key]:
            logger.warning("%s: %s=%s is not used any more", where, key, content[key])
    return {key: value for key, value in content.items() if key not in RETIRED}


def merge(recipe: dict[str, Any], arguments: list[str]) -> DictConfig:
    """Defaults, then the recipe, then the command line; ConfigError names the key that does not fit."""
    named = [argument for argument in arguments if argument.startswith(MULTIPLIERS)]
    try:
        hints = dict(hints_of(TrainConfig, ""))
        overrides = OmegaConf.from_dotlist(
            [as_typed(argument, hints) for argument in arguments if argument not in named]
        )
        content = OmegaConf.to_container(overrides)
        factors = dict(multiplier(argument) for argument in named)
    except (OmegaConfBaseException, *YAML_ERRORS) as error:
        raise ConfigError(f"the command line cannot be read: {error}") from error
    check_plain(content, "the command line")
    check_keys(typing.cast(dict[str, Any], content), "the command line")
    last = {"optimizer": {"lr_multipliers": factors}}
    try:
        return typing.cast(DictConfig, OmegaConf.merge(defaults(), recipe, overrides, last))
    except OmegaConfBaseException as error:
        raise ConfigError(misfit(error)) from error
    except (TypeError, ValueError) as error:  # OmegaConf's own, where a section stands for a value
        raise ConfigError(f"the settings do not fit the schema: {error}") from error


@functools.cache
def defaults() -> DictConfig:
    """The schema with its defaults; made once, for making it is half of a merge, which copies it."""
    return typing.cast(DictConfig, OmegaConf.structured(TrainConfig))


def to_config(merged: DictConfig) -> TrainConfig:
    """The merged tree as dataclasses; ConfigError where a key without default was left out."""
    missing = sorted(OmegaConf.missing_keys(merged))
    if missing:
        raise ConfigError(
            f"{missing[0]} has no default and was not given; say {missing[0]}=... "
            "(for datasets.root: the folder that `maskshards build --out` wrote)"
        )
    try:
        config = typing.cast(TrainConfig, OmegaConf.to_object(merged))
    except OmegaConfBaseException as error:
        raise ConfigError(misfit(error)) from error
    check_lists(config)
    return config


def check_lists(config: Any, prefix: str = "") -> None:
    """ConfigError for the first list with something else than numbers; OmegaConf lets lists in lists pass."""
    for entry in dataclasses.fields(config):
        value, key = getattr(config, entry.name), prefix + entry.name
        if dataclasses.is_dataclass(value):
            check_lists(value, f"{key}.")
        elif isinstance(value, list) and not all(type(item) in (int, float) for item in value):
            raise ConfigError(f"{key} is {value}, expected a list of numbers")
        elif isinstance(value, list) and not all(math.isfinite(item) for item in value):
            raise ConfigError(f"{key} is {value}, expected finite numbers")


def to_plain(config: TrainConfig) -> dict[str, Any]:
    """The config as strict JSON values (enums by name, infinity as "inf"), as checkpoints hold it."""
    container = OmegaConf.to_container(OmegaConf.structured(config), enum_to_str=True)
    return typing.cast(dict[str, Any], finite(container))


def finite(value: Any) -> Any:
    """`value` with floats that JSON lacks as strings, which the schema turns back into floats."""
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [finite(inner) for inner in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def write_config(config: TrainConfig, path: Path, words: Sequence[str] = ()) -> None:
    """Write the whole merged config as YAML that `config=` accepts, from any folder and for a new run.

    For that `output_dir` is made absolute, and `resume_from`, which was meant for one start, is null. The
    `words` that were given stand above as a comment.
    """
    place = str(Path(config.output_dir or "").absolute())
    config = dataclasses.replace(config, output_dir=place, resume_from=None)
    with replacing(path) as hidden:
        hidden.write_text(as_given(words) + to_yaml(config), encoding="utf-8")


def as_given(words: Sequence[str]) -> str:
    """A comment for a YAML file: the command as it was given, and where; empty without words."""
    if not words:
        return ""
    lines = ["given: " + shlex.join(["maskshards", "train", *words]), f"in: {Path.cwd()}"]
    return "".join(f"# {printable(line)}\n" for line in lines)


def to_yaml(config: TrainConfig) -> str:
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def known_keys(kind: type = TrainConfig, prefix: str = "") -> Iterator[str]:
    """Every dotted key of the schema, sections included."""
    hints = typing.get_type_hints(kind)
    for entry in dataclasses.fields(kind):
        key = prefix + entry.name
        yield key
        if dataclasses.is_dataclass(hints[entry.name]):
            yield from known_keys(typing.cast(type, hints[entry.name]), key + ".")


def check_keys(content: dict[str, Any], where: str) -> None:
    """ConfigError for the first key in `content` that the schema lacks, with the nearest that it has."""
    known = list(known_keys())
    check_undotted(content, where)
    for key in flatten(content):
        if key not in known:
            advice = ELSEWHERE.get(key) or nearest(key, [*known, RESERVED])
            raise ConfigError(f"{where}: unknown key {key[:80]!r}; {advice}")
    check_sections(content, TrainConfig, where)


def check_undotted(content: dict[str, Any], where: str) -> None:
    """ConfigError for `a.b: value` in a file: on the command line dots open sections, in YAML lines do."""
    for name in content:
        if isinstance(name, str) and "." in name.strip("."):
            section, _, inner = name.rpartition(".")
            raise ConfigError(f"{where}: {name} is no key of a file; write it as {section}: {{{inner}: ...}}")


def check_sections(content: dict[str, Any], kind: type, where: str, prefix: str = "") -> None:
    """ConfigError where one value, or none, stands for a section of keys. `kind` is what `content` holds."""
    hints = typing.get_type_hints(kind)
    for name, value in content.items():
        if not dataclasses.is_dataclass(hints.get(name)):
            continue
        section, key = typing.cast(type, hints[name]), f"{prefix}{name}"
        if not isinstance(value, dict):
            inner = ", ".join(f"{key}.{entry.name}" for entry in dataclasses.fields(section)[:3])
            raise ConfigError(
                f"{where}: {key} is {value!r}, expected a section of keys ({inner} ...){MEANT.get(key, '')}"
            )
        check_sections(value, section, where, f"{key}.")


def flatten(content: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in content.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict) and key not in FREE_FORM:
            yield from flatten(value, key + ".") if value else iter([key])
        else:
            yield key
