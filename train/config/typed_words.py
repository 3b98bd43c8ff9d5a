"""A `key=value` of the command line, read as the type that its key has; what is said where it does not fit.

YAML 1.1 reads more into a word than people write: 010 is 8 and 1:30 is 90 there. Here a number is written in
decimals, or it is refused.
"""

from __future__ import annotations

import dataclasses
import json
import re
import typing
from collections.abc import Iterator
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from maskshards.train.keys import ConfigError

SPLITS = ("datasets.train", "datasets.val")  # text that may be left to its default by null
POWER_OF_TEN = re.compile(r"[0-9]+e[0-9]")  # a whole number for certain, and exact
# Numbers to YAML 1.1 only: hexadecimal, binary, octal, base 60.
OTHER_NUMBER = re.compile(r"[+-]?(0[xX][0-9a-fA-F]+|0[bB][01]+|0[0-9_]+|[0-9]+(:[0-9]+)+)")
MULTIPLIERS = "optimizer.lr_multipliers."  # what follows it is one name, dots and all
NUMBERS = (int, int | None, float, float | None)
NUMBER, WHOLE, LIST = "a number", "a whole number", "a list in brackets, like [512, 512]"
EXPECTED = {  # OmegaConf's words for a type -> ours
    "int": WHOLE, "Integer": WHOLE, "float": NUMBER, "Float": NUMBER, "bool": "true or false", "str": "text",
    "ListConfig": LIST,
}  # fmt: skip
MISFITS = tuple(  # OmegaConf's messages about a value that does not fit
    re.compile(message)
    for message in (
        r"Value (?P<found>'.*') of type '\w+' could not be converted to (?P<kind>\w+)",
        r"Value (?P<found>'.*') is not a valid (?P<kind>bool) ",
        r"Incompatible value '(?P<found>None)' for field of type '(?P<kind>\w+)'",
        r"Invalid value assigned: (?P<found>\w+) is not a (?P<kind>ListConfig)",
    )
)
FOUND = {"None": "empty", "AnyNode": "no list"}


def hints_of(kind: type, prefix: str) -> Iterator[tuple[str, Any]]:
    """(dotted key, type) of everything in the schema."""
    for name, hint in typing.get_type_hints(kind).items():
        yield prefix + name, hint
        if dataclasses.is_dataclass(hint):
            yield from hints_of(typing.cast(type, hint), f"{prefix}{name}.")


def as_typed(argument: str, hints: dict[str, Any]) -> str:
    """A `key=value` as YAML gives it the type that the key has.

    Where the key holds text YAML leaves it alone: 2024_11_29 and 007 are text, and quotes keep what they
    hold. `null`, Python's None, or nothing at all is null where the key allows it; 1e3 is a whole number.
    ConfigError for a number that only YAML 1.1 takes for one.
    """
    key, equals, value = argument.partition("=")
    hint = hints.get(key)
    if key in SPLITS and value in ("null", "None", "none"):
        return f"{key}=''"
    if not equals or value[:1] in ("'", '"'):
        return argument
    if hint in (str, str | None):
        empty = hint is not str and value in ("", "null")
        return argument if empty else f"{key}={json.dumps(value, ensure_ascii=False)}"
    if type(None) in typing.get_args(hint) and value in ("None", "none"):
        return f"{key}=null"
    if hint in (int, int | None) and POWER_OF_TEN.fullmatch(value):
        return f"{key}={float(value):.0f}"
    if hint in NUMBERS and OTHER_NUMBER.fullmatch(value.strip()):
        raise ConfigError(f"{key} is {value!r}, expected a decimal number without zeros before it")
    return argument


def multiplier(argument: str) -> tuple[str, Any]:
    """(NAME, value) of `optimizer.lr_multipliers.NAME=value`; dots in a parameter's name open no sections."""
    name, _, value = argument.removeprefix(MULTIPLIERS).partition("=")
    return name, OmegaConf.to_container(OmegaConf.from_dotlist([f"value={value}"]))["value"]  # type: ignore[index,call-overload]


def misfit(error: OmegaConfBaseException) -> str:
    """OmegaConf's several-line message as one line: the key, what was found and what was expected."""
    first = str(error).splitlines()[0]
    for pattern in MISFITS:
        match = pattern.match(first)
        if match and error.full_key and match["kind"] in EXPECTED:
            found = FOUND.get(match["found"], match["found"])
            return f"{error.full_key} is {found}, expected {EXPECTED[match['kind']]}"
    return f"{error.full_key}: {first}" if error.full_key else first
