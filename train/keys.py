"""How a key of the configuration is declared: default, meaning and rule in one place.

Sections of the configuration are dataclasses whose fields are made by `key`. What the help prints, what the
check of one value says and what a recipe may hold all come from there. Nothing heavy is imported, so that a
typo is answered before torch is loaded.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

_RULE = "maskshards key"


class ConfigError(ValueError):
    """The recipe or the command line asks for something that cannot be."""


def closest(word: str, choices: Sequence[str]) -> str | None:
    """The choice closest to `word`, case aside: by the whole dotted name, else by its last part."""
    whole = {choice.lower(): choice for choice in reversed(choices)}
    last = {name.rsplit(".", 1)[-1]: choice for name, choice in whole.items()}
    close = difflib.get_close_matches(word.lower(), list(whole), n=1, cutoff=0.7)
    if close:
        return whole[close[0]]
    close = difflib.get_close_matches(word.lower().rsplit(".", 1)[-1], list(last), n=1)
    return last[close[0]] if close else None


def nearest(word: str, choices: Sequence[str]) -> str:
    """A phrase that offers the choice closest to `word`; where none is close, those of its section."""
    close = closest(word, [choice for choice in choices if not word.startswith(f"{choice}.")])
    if close is not None:
        return f"did you mean {close!r}?"
    section = word.rpartition(".")[0]
    beside = [choice for choice in choices if section and choice.rpartition(".")[0] == section]
    beside = beside or [choice for choice in choices if "." not in choice] or list(choices)
    return f"known are {', '.join(beside[:16])}{' and more' if len(beside) > 16 else ''}"


@dataclass(frozen=True)
class Rule:
    """What a key means and which values it takes; bounds say nothing about null."""

    meaning: str
    above: float | None = None
    at_least: float | None = None
    at_most: float | None = None
    below: float | None = None
    one_of: tuple[str, ...] = ()
    may_be_infinite: bool = False

    def complaint(self, value: Any) -> str | None:
        """What was expected instead of `value`; None where it fits."""
        if value is None:
            return None
        if self.one_of:
            return None if value in self.one_of else f"one of {', '.join(self.one_of)}"
        if isinstance(value, int) and abs(value) >= 1 << 64:
            return "a number of at most 64 bits"
        if isinstance(value, int | float):
            bounds = [
                (self.above, "above", lambda bound: value > bound),
                (self.at_least, "at least", lambda bound: value >= bound),
                (self.at_most, "at most", lambda bound: value <= bound),
                (self.below, "below", lambda bound: value < bound),
            ]
            set_bounds = [(bound, word, holds) for bound, word, holds in bounds if bound is not None]
            endless = not math.isfinite(value) and not (self.may_be_infinite and value == math.inf)
            if endless or not all(holds(bound) for bound, _, holds in set_bounds):
                words = " and ".join(f"{word} {bound:g}" for bound, word, _ in set_bounds)
                return f"{'a finite number' if endless else 'a number'} {words}".rstrip()
        return None


def key(default: Any, meaning: str, **rule: Any) -> Any:
    """A dataclass field with its meaning and, by the words of Rule, its rule; lists and dicts are copied."""
    metadata = {_RULE: Rule(meaning, **rule)}
    if isinstance(default, list | dict):
        return dataclasses.field(default_factory=default.copy, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def section(kind: type, meaning: str) -> Any:
    """A dataclass field that holds a section: another dataclass of keys."""
    return dataclasses.field(default_factory=kind, metadata={_RULE: Rule(meaning)})


def rule_of(field: dataclasses.Field[Any]) -> Rule:
    """The rule of a field that `key` or `section` made."""
    rule: Rule = field.metadata[_RULE]
    return rule


def check_section(values: Any, prefix: str = "") -> None:
    """Raise ConfigError for the first key that breaks its rule, and whatever the section's own `check` finds.

    `values` is an instance of a section, `prefix` its dotted name with a final dot.
    """
    for field, value in fields_of(values):
        if dataclasses.is_dataclass(value):
            check_section(value, f"{prefix}{field.name}.")
        elif (expected := rule_of(field).complaint(value)) is not None:
            found = repr(value) if isinstance(value, str) else value
            close = closest(value, rule_of(field).one_of) if isinstance(value, str) else None
            hint = f" (did you mean {close!r}?)" if close else ""
            raise ConfigError(f"{prefix}{field.name} is {found}, expected {expected}{hint}")
    if hasattr(values, "check"):
        values.check()


def fields_of(values: Any) -> Iterator[tuple[dataclasses.Field[Any], Any]]:
    return ((field, getattr(values, field.name)) for field in dataclasses.fields(values))
