"""The files below a folder: what operating systems leave there is no data, and links to folders are refused.

Endings are compared without case. A file with another ending belongs to somebody else (a polygon file, a
preview) and is passed over; how many there were is told in one line.
"""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from maskshards.preprocess.errors import Reject, SourceError
from maskshards.shards.errors import counted

JUNK = frozenset(
    ("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx", "@eadir", "$recycle.bin", "lost+found")
)
SHOWN_ENDINGS = 6
IMAGE_ENDINGS = (
    *(".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"),
    *(".jp2", ".j2k", ".avif", ".heic", ".heif", ".ppm", ".pgm"),
)


def is_junk(name: str) -> bool:
    """Whether a file or folder of that name is none of the data set's: hidden, or an operating system's."""
    return name.startswith(".") or name.lower() in JUNK


def files_below(
    root: Path, base: str, rejects: list[Reject], skipped: frozenset[str] = frozenset()
) -> Iterator[str]:
    """Paths below `root/base`, with '/'; SourceError where a folder cannot be listed.

    `skipped` names folders below `base` that are not entered. Links to folders can form circles: each is
    added to `rejects`.
    """
    top = root / base
    for folder, subfolders, files in os.walk(top, onerror=_cannot_list):
        relative = Path(folder).relative_to(top).as_posix()
        prefix = "" if relative == "." else f"{relative}/"
        for name in list(subfolders):
            if is_junk(name) or prefix + name in skipped:
                subfolders.remove(name)
            elif os.path.islink(os.path.join(folder, name)):
                path = "/".join(part for part in (base, prefix + name) if part)
                rejects.append(Reject(path, "a link to a folder; replace it by the folder"))
        yield from (prefix + name for name in files if not is_junk(name))


def without_ending(path: str, ending: str) -> str | None:
    """The path without that ending, whatever its case; None where it has another."""
    return path[: -len(ending)] if path.lower().endswith(ending.lower()) else None


def same_form(text: str) -> str:
    """The text in Unicode's composed form, in which names from different systems are equal."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def passed_over_note(place: str, paths: list[str], why: str) -> str:
    """One line on files that were passed over: `gtFine/train: 4 files ... passed over (2 .json, 2 .png)`."""
    endings = Counter(os.path.splitext(path)[1].lower() or "without ending" for path in paths)
    shown = [f"{count} {ending}" for ending, count in endings.most_common(SHOWN_ENDINGS)]
    more = ["..."] if len(endings) > SHOWN_ENDINGS else []
    return f"{place}: {counted(len(paths), 'file')} {why} passed over ({', '.join(shown + more)})"


def _cannot_list(error: OSError) -> None:
    raise SourceError(f"{error.filename} cannot be listed: {error.strerror}") from error


def found_in(folder: Path) -> str:
    """What a folder holds, in a few words for a message."""
    if not folder.is_dir():
        return "no such folder"
    names = sorted(entry.name for entry in os.scandir(folder) if not is_junk(entry.name))
    return ", ".join(names[:12]) or "an empty folder"


def without_image_ending(path: str) -> str | None:
    """The path without the ending of a format that images may have; None for another."""
    stem, ending = os.path.splitext(path)
    return stem if ending.lower() in IMAGE_ENDINGS else None


def path_below(base: str, other: str) -> frozenset[str]:
    """`other` as a path below `base`, where it is one."""
    if not base:
        return frozenset((other,)) if other else frozenset()
    return frozenset((other[len(base) + 1 :],)) if other.startswith(f"{base}/") else frozenset()
