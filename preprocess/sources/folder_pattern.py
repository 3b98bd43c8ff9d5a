"""Where one kind of file lies below the root: `images`, `{split}/images`, `{split}/*/images_png`.

`{split}` stands for the split's name, or for a part of a folder's name (`{split}2017`); without it a folder
for each split follows at the end. `*` stands for any one folder below, whose name becomes part of the key.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from maskshards.preprocess.errors import SourceError
from maskshards.preprocess.sources.file_listing import found_in, is_junk

LABEL_FOLDERS = ("annotations", "labels", "masks")
SPLIT, STAR = "{split}", "*"


@dataclass(frozen=True, slots=True)
class FolderPattern:
    """The folder of images, or of label maps, as a pattern."""

    text: str
    flat: bool = False  # one folder for all splits

    def base(self, split: str) -> str:
        """The folder below the root that holds all files of the split, '' for the root itself."""
        return _folders(self.text, self.flat, split)[0]

    def stem(self, split: str, path: str) -> str | None:
        """The key part of a path below `base`: what the stars stand for, then the rest; None = no match."""
        inner = _folders(self.text, self.flat, split)[1]
        if not inner:
            return path
        parts = path.split("/")
        if len(parts) <= len(inner):
            return None
        for expected, found in zip(inner, parts, strict=False):
            if expected not in (STAR, found):
                return None
        stars = [found for expected, found in zip(inner, parts, strict=False) if expected == STAR]
        return "/".join([*stars, *parts[len(inner) :]])

    def path(self, split: str, stem: str) -> str:
        """The path below `base` of which `stem` is the key part."""
        inner = _folders(self.text, self.flat, split)[1]
        if not inner:
            return stem
        parts = stem.split("/")
        stars = iter(parts)
        filled = [next(stars) if part == STAR else part for part in inner]
        return "/".join([*filled, *stars])

    def splits(self, root: Path) -> tuple[str, ...]:
        """The names of splits for which there is a folder, sorted. SourceError where none can be."""
        parts = _parts(self.text, self.flat, SPLIT)
        place = next(number for number, part in enumerate(parts) if SPLIT in part)
        if STAR in parts[:place]:
            raise SourceError(f"folder pattern {self.text!r}: '*' may stand after {SPLIT} only")
        parent = root.joinpath(*parts[:place])
        if not parent.is_dir():
            return ()
        before, _, after = parts[place].partition(SPLIT)
        pattern = re.compile(re.escape(before) + "(.+)" + re.escape(after))
        found = (pattern.fullmatch(entry.name) for entry in os.scandir(parent) if entry.is_dir())
        names = sorted(match[1] for match in found if match and not is_junk(match[0]))
        return tuple(name for name in names if (root / self.base(name)).is_dir())


@lru_cache(maxsize=64)
def _folders(text: str, flat: bool, split: str) -> tuple[str, tuple[str, ...]]:
    """The folder before the first star, and the folders from it on."""
    parts = _parts(text, flat, split)
    first = parts.index(STAR) if STAR in parts else len(parts)
    return "/".join(parts[:first]), tuple(parts[first:])


def _parts(text: str, flat: bool, split: str) -> list[str]:
    whole = text if flat or SPLIT in text else f"{text}/{SPLIT}"
    return [part for part in whole.replace(SPLIT, split).split("/") if part not in ("", ".")]


def find_labels_folder(root: Path) -> str:
    """The usual folder of label maps below `root`, or below each split with `{split}/` before it.

    SourceError where that is none or more than one.
    """
    usual = [name for name in LABEL_FOLDERS[:2] if (root / name).is_dir()]
    found = usual or [name for name in LABEL_FOLDERS[2:] if (root / name).is_dir()]
    if not found:
        found = [text for name in LABEL_FOLDERS if FolderPattern(text := f"{{split}}/{name}").splits(root)]
    if len(found) != 1:
        state = "both are there, so rename one" if found else f"found {found_in(root)}"
        raise SourceError(
            f"{root}: expected the label maps in {' or '.join(LABEL_FOLDERS)}; {state}, or name it with"
            " --labels-folder"
        )
    return found[0]


def find_images_folder(root: Path) -> str:
    """`images`, or `{split}/images` where only the splits' folders have one."""
    split_first = FolderPattern("{split}/images")
    return split_first.text if not (root / "images").is_dir() and split_first.splits(root) else "images"
