"""Which samples belong to which split: folders, lists of names, or a share drawn by a keyed hash."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from maskshards.preprocess.errors import SourceError
from maskshards.preprocess.inputs.source_files import list_lines
from maskshards.preprocess.sources.file_listing import is_junk, same_form, without_ending
from maskshards.preprocess.sources.source import Source

ALIASES = (("training", "train"), ("validation", "val", "valid"), ("test", "testing"))
DRAWN = ("training", "validation")  # the splits of a flat folder
UNIONS = ("trainval", "train_val", "all")  # lists that repeat others; built when asked for
LIST_ENDING = ".txt"
MARKED = re.compile(r"\S+\s+([+-]?[01])")  # of a class's list, ImageSets/Main of VOC


def resolve_split(wanted: str, source: Source) -> str:
    """The source's split that `wanted` names, by itself or by a usual other word; else `wanted` as it is."""
    try:
        found = source.splits()
    except SourceError:  # it may lack another split; the one that is wanted is looked for when it is listed
        return wanted
    if wanted in found:
        return wanted
    words = next((group for group in ALIASES if wanted.lower() in group), (wanted.lower(),))
    return next((name for name in found if name.lower() in words), wanted)


def is_validation(stem: str, share: float) -> bool:
    """Whether a name is among the share that is drawn for validation; depends on the name and share alone."""
    digest = hashlib.blake2b(
        same_form(stem).encode("utf-8", "surrogateescape"), digest_size=8, key=b"val-share"
    )
    return int.from_bytes(digest.digest()) < share * 2**64


def listed_splits(folder: Path) -> tuple[str, ...]:
    """The splits for which there is a list of names; SourceError without any."""
    if not folder.is_dir():
        raise SourceError(f"{folder}: there is no such folder; expected lists of names such as train.txt")
    paths = [path for path in folder.iterdir() if path.suffix == LIST_ENDING and not is_junk(path.name)]
    names = sorted(path.stem for path in paths)
    chosen = tuple(name for name in names if name not in UNIONS) or tuple(names)
    if not chosen:
        raise SourceError(f"{folder}: no list of names in it; expected train.txt, val.txt, ...")
    return chosen


def read_names(path: Path) -> dict[str, int]:
    """Name -> number of its line, of a list with one name a line; SourceError for one that stands twice."""
    lines = list_lines(path, "list of names", "one name a line, in UTF-8")
    names: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        name = line.strip().removeprefix("./")
        if name in names:
            raise SourceError(f"{path}, line {number}: {name!r} stands in line {names[name]} too")
        if name:
            names[name] = number
    return names


@dataclass(frozen=True, slots=True)
class Listed:
    """What a line of a list says of the image that it names."""

    line: int  # its number
    label: str  # composed stem of its label map


def listed_stems(
    path: Path, images_folder: str, labels_folder: str, image_endings: Iterable[str], label_ending: str
) -> dict[str, Listed]:
    """Composed stem of each image that a list names, alone or beside its label map.

    An image is named by name, by file or by path. SourceError for a list of something else.
    """
    endings = sorted({*image_endings, label_ending}, key=len, reverse=True)
    stems: dict[str, Listed] = {}
    for line, number in read_names(path).items():
        if match := MARKED.fullmatch(line):
            raise SourceError(
                f"{path}, line {number}: {line!r} says whether a class is in the image ({match[1]}); expected"
                " a list of names alone, such as those of ImageSets/Segmentation"
            )
        image, label = _two_columns(line, endings)
        stem = same_form(_stem(image, images_folder, endings))
        stems[stem] = Listed(number, same_form(_stem(label, labels_folder, endings)) if label else stem)
    return stems


def _two_columns(line: str, endings: list[str]) -> tuple[str, str]:
    """The image and the label map of a line, '' where it names one file; names may hold spaces."""
    if not line.lower().endswith(tuple(end.lower() for end in endings)):
        return line, ""
    ending = "|".join(map(re.escape, endings))
    match = re.fullmatch(rf"(.+?(?:{ending}))[\s,;]+(.+(?:{ending}))", line, re.IGNORECASE)
    return (match[1], match[2]) if match else (line, "")


def _stem(name: str, folder: str, endings: list[str]) -> str:
    """The path below `folder`, of which any part may stand before it, without its ending."""
    name = name.replace("\\", "/").lstrip("/").removeprefix("./")
    parts = [part for part in folder.split("/") if part not in ("", ".")]
    above = ["/".join(parts[start:]) + "/" for start in range(len(parts))]
    name = next((name.removeprefix(start) for start in above if name.startswith(start)), name)
    return next((bare for end in endings if (bare := without_ending(name, end)) is not None), name)


def names_nothing(path: Path, wanted: Iterable[str], what: str) -> str:
    """What to say of a list none of whose names is that of a file that is there."""
    names = list(wanted)
    first = repr(names[0]) if names else "none"
    return (
        f"{path}: none of its {len(names)} names is that of {what}; the first is {first}. Expected one name a"
        " line, with or without its ending; or name the splits to build with --splits"
    )
