"""Class lists: text files with one name a line, or ADE20K's own table.

A class's place in the file is its id, so an empty line in the middle or a name that stands twice is a
mistake, not a detail.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from maskshards.preprocess.errors import SourceError

Color = tuple[int, int, int]


def read_classes(path: Path) -> tuple[str, ...]:
    """The names in a text file, one a line; SourceError for a missing file, empty lines, or names that
    stand twice.
    """
    try:
        text = path.read_text(encoding="utf-8")
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


def _checked(lines: list[str], place: str) -> tuple[str, ...]:
    names = tuple(line.strip() for line in lines)
    for number, name in enumerate(names, start=1):
        if not name:
            raise SourceError(f"class list {place}, line {number}: empty; expected one class name a line")
        if name in names[: number - 1]:
            raise SourceError(f"class list {place}, line {number}: {name!r} stands twice")
    return names
