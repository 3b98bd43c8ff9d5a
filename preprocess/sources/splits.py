"""Which samples belong to which split: folders, lists of names, or a share drawn by a keyed hash."""

from __future__ import annotations

import hashlib
from pathlib import Path

from maskshards.preprocess.errors import SourceError
from maskshards.preprocess.sources.file_listing import is_junk, same_form
from maskshards.preprocess.sources.source import Source

ALIASES = (("training", "train"), ("validation", "val", "valid"), ("test", "testing"))
DRAWN = ("training", "validation")  # the splits of a flat folder
UNIONS = ("trainval", "train_val", "all")  # lists that repeat others; built when asked for
LIST_ENDING = ".txt"


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
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise SourceError(f"list of names {path} cannot be read: {reason}") from error
    names: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        name = line.strip().removeprefix("./")
        if name in names:
            raise SourceError(f"{path}, line {number}: {name!r} stands in line {names[name]} too")
        if name:
            names[name] = number
    return names
