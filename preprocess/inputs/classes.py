"""Class lists: text files with one name a line, or ADE20K's own table.

A class's place in the file is its id, so an empty line in the middle or a name that stands twice is a
mistake, not a detail. Numbers before the names, comments and a header are taken off, and told; what is no
list of names (JSON, YAML, a table of colours) would shift every id, so it is refused.
"""

from __future__ import annotations

import logging
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from maskshards.preprocess.errors import SourceError
from maskshards.preprocess.inputs.labels import LabelRule
from maskshards.preprocess.inputs.source_files import list_lines
from maskshards.shards.errors import printable
from maskshards.shards.format.rle import IGNORE

logger = logging.getLogger(__name__)

MOST_CLASSES = IGNORE - 1
MOST_LINES = 2 * MOST_CLASSES  # with comments
# These look at every line of whatever file is given: none may cost the square of a line's length.
NUMBERED = re.compile(r"(?P<number>-?\d{1,18})(?!\.\d)\s*[\s:,;.=|-]\s*(?P<name>\S.*)")
NUMBERED_LAST = re.compile(r"(?P<name>\S(?:.*[^\s:,;=|])?)(?=\s*[:,;=|\t])[\s:,;=|]++(?P<number>\d{1,18})")
GAP = r"(?:\s*+[,;]\s*+|\s++)"
COLOURED = re.compile(rf"(?<!\d)\d++{GAP}\d++{GAP}\d++\s*+$|^\d+\s+\d+\s+\d+\s")
QUOTED = re.compile(r"\"[^\"]+\",?|'[^']+',?")
MARKUP = re.compile("<!doctype html|<html|<\\?xml", re.IGNORECASE)  # a failed download, another kind of file
YAML = re.compile(r"- |\w+: *\[")
COLUMNS = re.compile(r"[,;\t]")
TITLES = frozenset(
    "id ids idx index label value number class name category classes names pixelvalue classid labelid trainid"
    " categoryid classname labelname color colour supercategory".split()
)
Color = tuple[int, int, int]


def read_classes(path: Path, first_number: int = 0) -> tuple[str, ...]:
    """The names in a text file, one a line.

    SourceError for a missing file, empty lines, or names that stand twice. Control characters inside a name
    are kept as escapes, and told. Where lines are numbered, the first has to have the value that its class
    has in the label maps.
    """
    lines = list_lines(path, "class list", "a text file with one class name a line", MOST_LINES)
    if 4 * sum(line.count("\0") for line in lines) > sum(map(len, lines)):
        if any(lines):  # without its mark, UTF-16 passes as UTF-8
            raise SourceError(f"class list {path} seems to be UTF-16; save it as UTF-8")
    return _checked(_names(lines or [""], str(path), first_number), str(path))


def _names(lines: list[str], place: str, first_number: int) -> list[str]:
    """The lines without comments, header and numbers; SourceError for another kind of file."""
    kept = [line.strip() for line in lines if not line.lstrip().startswith("#")]
    if len(kept) < len(lines):
        logger.warning("class list %s: %d lines of comments are no classes", place, len(lines) - len(kept))
    kept = kept or [""]
    _check_plain(kept, place)
    if all(QUOTED.fullmatch(line) for line in kept):
        kept = [line.rstrip(",").strip()[1:-1] for line in kept]
    titles = [re.sub(r"[\s_-]", "", word.lower()) for word in COLUMNS.split(kept[0])]
    titled = len(titles) > 1 and set(titles) <= TITLES
    numbers = range(first_number, first_number + len(kept) - 1)
    if not titled and len(kept) > 2 and [_number(line) for line in kept] == [None, *numbers]:
        titled = True  # a header in words of its own
    kept = kept[1:] if titled else kept
    if titled and kept and len(titles) > 2:
        raise SourceError(
            f"class list {place} is a table of {len(titles)} columns; expected one class name a line, in the"
            " order of the ids"
        )
    return _unnumbered(kept, place, first_number)


def _check_plain(lines: list[str], place: str) -> None:
    first = lines[0]
    if (first[-1:] in ("[", "{") or (first[:1] in ("[", "{") and first[-1:] in "]},")) or MARKUP.match(first):
        raise SourceError(f"class list {place} is no plain text; expected one class name a line")
    if first.endswith(":") or first == "---" or YAML.match(first):
        raise SourceError(f"class list {place} seems to be YAML; expected one class name a line")
    if len(lines) == 1 and first.count(",") > 1:
        raise SourceError(f"class list {place} has one line with commas; expected one class name a line")
    if lines[1:] and all(COLOURED.search(line) for line in lines[1:]):
        raise SourceError(f"class list {place} holds colours; give it with --colours, or the names alone")


def _number(line: str) -> int | None:
    """The number that a line has before or behind its name."""
    match = NUMBERED.fullmatch(line) or NUMBERED_LAST.fullmatch(line)
    return int(match["number"]) if match else None


def _unnumbered(lines: list[str], place: str, first: int) -> list[str]:
    """The names of lines such as `0 road`, `1: road`, `2,road` or `road,3`.

    The lines as they are, unless every one is of the same kind.
    """
    for row in (NUMBERED, NUMBERED_LAST):
        found = [match for line in lines if (match := row.fullmatch(line))]
        if not lines or len(found) < len(lines):
            continue
        numbers = [int(match["number"]) for match in found]
        if numbers != list(range(first, first + len(numbers))):
            raise SourceError(
                f"class list {place} numbers its classes {', '.join(map(str, numbers[:4]))} ..., where label"
                f" maps are to hold {first}, {first + 1}, ... Give the names alone, in the order of the ids;"
                " for values from 1 say --reduce-zero-label (0 is void), for values with gaps --mapping"
            )
        side = "before" if row is NUMBERED else "behind"
        logger.warning("class list %s: the numbers %s its names are taken off", place, side)
        return [match["name"] for match in found]
    return lines


def ade20k_classes() -> tuple[str, ...]:
    """The 150 names of ADE20K's scene parsing task, in the order of the label values 1..150."""
    text = resources.files("maskshards.configs").joinpath("ade20k-classes.txt").read_text(encoding="utf-8")
    return _checked(text.rstrip("\n").split("\n"), "configs/ade20k-classes.txt")


def ade20k_palette() -> tuple[Color, ...]:
    """The 150 colours (RGB, 0..255) in which ADE20K's classes are usually shown, in their order."""
    text = resources.files("maskshards.configs").joinpath("ade20k-palette.txt").read_text(encoding="utf-8")
    rows = (tuple(int(word) for word in line.split()) for line in text.splitlines())
    return tuple((red, green, blue) for red, green, blue in rows)


def read_object_info(path: Path) -> tuple[str, ...]:
    """The names in ADE20K's objectInfo150.txt.

    It holds a header line, then tab-separated Idx, Ratio, Train, Val, Name.
    """
    names = []
    for number, line in enumerate(list_lines(path, "table", "ADE20K's objectInfo150.txt")[1:], start=1):
        fields = [part.strip() for part in line.split("\t")]
        if len(fields) < 5 or fields[0] != str(number):
            raise SourceError(
                f"{path}, line {number + 1}: expected index {number} and four more tab-separated fields, "
                f"found {line[:80]!r}"
            )
        names.append(fields[4])
    if not names:
        raise SourceError(f"{path} names no class; unpack the release again, or give --classes FILE")
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
            name = printable(name)
            logger.warning(
                "class list %s, line %d: control characters become escapes: %s", place, number, name
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
