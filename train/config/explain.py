"""The help of `maskshards train`: every key with its type, default and meaning, read off the schema."""

from __future__ import annotations

import dataclasses
import textwrap
import types
import typing
from collections.abc import Iterator
from enum import Enum
from typing import Any

from omegaconf import MISSING

from maskshards.train.config.schema import TrainConfig
from maskshards.train.keys import Rule, rule_of

WIDTH = 110

USAGE = """usage: maskshards train config=RECIPE data=SHARDS out=FOLDER [key=value ...]

Train a head on a frozen backbone, or evaluate one. RECIPE is a YAML file or the name of a packaged recipe
(config=demo); key=value arguments win over it, and data and out are short for datasets.root and output_dir.
load_from=CHECKPOINT evaluates, init_from=CHECKPOINT trains from these weights, resume_from=auto continues
what output_dir holds.

example:
  maskshards train config=demo data=data/demo-shards out=runs/demo
on all GPUs of a node:
  torchrun --nproc-per-node gpu --no-python maskshards train config=RECIPE ...
under Slurm, one task a GPU:
  srun maskshards train config=RECIPE ...

exit status: 0 done; 1 training had to stop (not finite, or a guard); 2 a fault in what was asked for or in
the files, one block on stderr; 128 + n stopped by signal n after saving (130 Ctrl-C, 143 SIGTERM).
"""


@dataclasses.dataclass(frozen=True)
class Key:
    """One key as the help shows it."""

    name: str  # dotted
    kind: str
    default: str
    rule: Rule

    def lines(self) -> list[str]:
        """The key, its type and default, then its meaning, wrapped."""
        choices = f" ({', '.join(self.rule.one_of)})" if self.rule.one_of else ""
        meaning = textwrap.wrap(self.rule.meaning + choices, WIDTH - 8)
        return [f"  {self.name}  <{self.kind}>  = {self.default}", *(f"        {line}" for line in meaning)]


EVALUATE = """usage: maskshards evaluate config=RECIPE load_from=CHECKPOINT data=SHARDS out=FOLDER [key=...]

Score the weights behind load_from on the validation split; nothing is trained. The words are those of
`maskshards train`.

example:
  maskshards evaluate config=demo load_from=runs/demo data=data/demo-shards out=runs/scores

exit status: as `maskshards train`.
"""


def help_text(usage: str = USAGE) -> str:
    """The whole help, with a final newline."""
    lines: list[str] = []
    for key in keys():
        lines.extend(key.lines())
    return f"{usage}\nkeys, as NAME <TYPE> = DEFAULT:\n" + "\n".join(lines) + "\n"


def keys(kind: type = TrainConfig, prefix: str = "") -> Iterator[Key]:
    """All keys that hold a value, top-level ones first, then section by section."""
    hints = typing.get_type_hints(kind)
    sections = []
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            sections.append((field.name, typing.cast(type, hint)))
        else:
            yield Key(prefix + field.name, type_name(hint), default_of(field), rule_of(field))
    for name, inner in sections:
        yield from keys(inner, f"{prefix}{name}.")


def type_name(hint: Any) -> str:
    """A type as recipes write its values."""
    if isinstance(hint, types.UnionType):
        return " or ".join(type_name(one) for one in typing.get_args(hint))
    if hint is type(None):
        return "null"
    if isinstance(hint, type) and issubclass(hint, Enum):
        return " or ".join(hint.__members__)
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is list:
        return f"list of {type_name(inner[0])}"
    if origin is dict:
        return f"names to {type_name(inner[1])}"
    return {str: "text", int: "whole number", float: "number", bool: "True or False", Any: "value"}[hint]


def default_of(field: dataclasses.Field[Any]) -> str:
    """A default as the command line would take it."""
    factory = field.default_factory
    value = field.default if factory is dataclasses.MISSING else factory()
    if value == MISSING:
        return "(must be given)"
    if value is None:
        return "null"
    if isinstance(value, Enum):
        return value.name
    return str(value) if value != "" else '""'
