"""Recipes and stored configurations are values and nothing else.

OmegaConf resolves `${oc.env:NAME}` and the like while it merges: the configuration that comes with a
stranger's weights could so carry an environment variable into a file name, a message or a request. None of
this is ever resolved: text that asks for it is refused, and so are YAML aliases, ten of which make a file of
a hundred bytes into gigabytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from maskshards.shards.storage.foreign_file import ForeignFileError, read_text
from maskshards.train.config.schema import ConfigError
from maskshards.train.config.typed_words import OTHER_NUMBER

MOST_BYTES = 1 << 20  # of a recipe; ours have 2 kB
# Of PyYAML for text that is none; those after the first for a tag with the wrong text (`!!int ''`).
YAML_ERRORS = (yaml.YAMLError, ValueError, KeyError, IndexError, AttributeError, RecursionError)
MOST_LEVELS = 20  # of lists and mappings in one another; ours have 3, and reading costs their square


def check_plain(content: object, where: str) -> None:
    """ConfigError, with the key, for the first text in `content` with `${`. `where` names the source."""
    for key, value in _texts(content, ""):
        if "${" in value:
            name = key or "the whole"
            raise ConfigError(
                f"{where}: {name} is {value!r}, but settings are plain values, and ${{...}} is never "
                "looked up; write the value itself"
            )


def read_plain_text(path: Path) -> str:
    """The text of a YAML file.

    ConfigError if it has aliases, or numbers that only YAML takes for some, is no text, or is too long or
    deep.
    """
    try:
        text = read_text(path, MOST_BYTES)
    except ForeignFileError as error:
        raise ConfigError(f"config file {error}; a recipe is a text of a few thousand bytes") from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"config file {path} is no text in UTF-8 (byte {error.start}); save it as such"
        ) from error
    levels = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        line = event.start_mark.line + 1 if event.start_mark else 1
        levels += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if levels > MOST_LEVELS:
            raise ConfigError(
                f"config file {path}, line {line}: more than {MOST_LEVELS} lists or mappings in one another"
            )
        if isinstance(event, yaml.AliasEvent):
            raise ConfigError(
                f"config file {path}, line {line}: *{event.anchor} is an alias; write the value itself"
            )
        if isinstance(event, yaml.ScalarEvent) and event.implicit[0] and OTHER_NUMBER.fullmatch(event.value):
            number = yaml.safe_load(event.value)
            if not isinstance(number, str):
                raise ConfigError(
                    f"config file {path}, line {line}: {event.value:.40} is {number} to YAML; write a "
                    "decimal number without zeros before it, or text in quotes"
                )
    return text


def read_plain(path: Path) -> dict[str, Any]:
    """The keys and values of a YAML file; ConfigError for anything else, OSError where it cannot be read."""
    try:
        content = yaml.safe_load(read_plain_text(path))
    except ConfigError:
        raise
    except YAML_ERRORS as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"config file {path} cannot be read as YAML: {reason}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"config file {path} holds a {type(content).__name__}, expected key: value pairs")
    return content


def flat(keys: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of nested sections."""
    for name, value in keys.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _texts(content: object, key: str) -> Iterator[tuple[str, str]]:
    """(dotted key, text) of every string in nested mappings and lists; names of keys count as well."""
    if isinstance(content, dict):
        for name, value in content.items():
            yield f"{key}.{name}".lstrip("."), str(name)
            yield from _texts(value, f"{key}.{name}".lstrip("."))
    elif isinstance(content, list):
        for place, value in enumerate(content):
            yield from _texts(value, f"{key}[{place}]")
    elif isinstance(content, str):
        yield key, content
