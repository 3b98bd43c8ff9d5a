"""Class lists: text files with one name a line, or ADE20K's own table.

A class's place in the file is its id, so an empty line in the middle or a name that stands twice is a
mistake, not a detail.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from maskshards.preprocess.errors import SourceError, printable
from maskshards.preprocess.inputs.labels import LabelRule
from maskshards.shards.format.rle import IGNORE

MOST_CLASSES = IGNORE - 1
Color = tuple[int, int, int]


def read_classes(path: Path) -> tuple[str, ...]:
    """The names in a text file, one a line; SourceError for a missing file, empty lines, or names that
    stand twice.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")  # Notepad begins with a byte order mark
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"it is not UTF-8 ({error.reason})"
        raise SourceError(
            f"class list {path} cannot be read: {reason}; give a text file with one class name a line"
        ) from error
    return _checked(text.rstrip("\n").split("\n"), str(path))


def ade20k_classes() -> tuple[str, ...]:
    """The 150 names of ADE20K's scene parsing task, in the order of the label values 1..150."""
    text = resources.files("maskshards.configs").joinpath("ade20k-classes.txt").read_text(encoding="utf-8")
    return _checked(text.rstrip("\n").split("\n"), "configs/ade20k-classes.txt")


def ade20k_palette() -> tuple[Color, ...]:
    """The 150 colours (RGB, 0..255) in which ADE20K's classes are usually shown, in the order of the
    classes.
    """
    text = resources.files("maskshards.configs").joinpath("ade20k-palette.txt").read_text(encoding="utf-8")
    rows = (tuple(int(word) for word in line.split()) for line in text.splitlines())
    return tuple((red, green, blue) for red, green, blue in rows)


def read_object_info(path: Path) -> tuple[str, ...]:
    """The names in ADE20K's objectInfo150.txt: a header line, then tab-separated Idx, Ratio, Train, Val,
    Name.
    """
    names = []
    for number, line in enumerate(path.read_text(encoding="utf-8").strip().split("\n")[1:], start=1):
        fields = [part.strip() for part in line.split("\t")]
        if len(fields) < 5 or fields[0] != str(number):
            raise SourceError(
                f"{path}, line {number + 1}: expected index {number} and four more tab-separated fields, "
                f"found {line!r}"
            )
        names.append(fields[4])
    return _checked(names, str(path))


@dataclass(frozen=True, slots=True)
class LabelTable:
    """What the values of a well-known data set's label maps stand for."""

    values: tuple[int, ...]  # in the label map, one a class
    names: tuple[str, ...]
    palette: tuple[Color, ...] | None

    def rule(self, void: Iterable[int]) -> LabelRule:
        """Each value is its class; those of `void` that are none are void, and nothing else is known."""
        known: dict[int, int | None] = dict.fromkeys(void)
        known |= {value: label for label, value in enumerate(self.values)}
        return LabelRule(len(self.names), mapping=tuple(sorted(known.items())))


def packaged_table(name: str) -> LabelTable:
    """The table in configs/NAME.txt: a value, red, green and blue (or -), and the name of a class a line."""
    text = resources.files("maskshards.configs").joinpath(f"{name}.txt").read_text(encoding="utf-8")
    rows = [line.split(maxsplit=4) for line in text.splitlines() if line and not line.startswith("#")]
    names = _checked([row[4] for row in rows], f"configs/{name}.txt")
    colours = [row[1:4] for row in rows if row[1] != "-"]
    palette = tuple((int(red), int(green), int(blue)) for red, green, blue in colours)
    return LabelTable(tuple(int(row[0]) for row in rows), names, palette or None)


def _checked(lines: list[str], place: str) -> tuple[str, ...]:
    first: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        name = line.strip()
        if not name:
            raise SourceError(f"class list {place}, line {number}: empty; expected one class name a line")
        if any(unicodedata.category(char) == "Cc" for char in name):
            raise SourceError(
                f"class list {place}, line {number}: {printable(name)} holds control characters"
            )
        if name in first:
            raise SourceError(
                f"class list {place}, line {number}: {name!r} stands twice, first in line {first[name]}"
            )
        first[name] = number
        if number > MOST_CLASSES:
            raise SourceError(
                f"class list {place} has {len(lines)} lines; at most {MOST_CLASSES} classes are possible."
                " Is it another file?"
            )
    return tuple(first)
