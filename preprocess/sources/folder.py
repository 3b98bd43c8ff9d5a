"""A data set as two folder trees: `images/SPLIT/NAME.jpg` and `annotations/SPLIT/NAME.png` (or `labels/`).

Images and label maps are paired by their path below the split, without the ending. Every visible file is
accounted for: what finds no partner, shares its name, or is no image is a refused input, never a silent
loss.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maskshards.preprocess.errors import Reject, SourceError
from maskshards.preprocess.inputs.labels import LabelRule
from maskshards.preprocess.inputs.source_files import file_stamp, read_unchanged
from maskshards.preprocess.sources.source import Listing, RawSample, Source, SourceItem
from maskshards.shards.format.record import escape_key

IMAGE_ENDINGS = (
    *(".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"),
    *(".jp2", ".j2k", ".avif", ".heic", ".heif", ".ppm", ".pgm"),
)
LABEL_FOLDERS = ("annotations", "labels")


@dataclass(frozen=True)
class FolderSource(Source):
    """Pairs of files below `root`; the endings tell images and labels apart where they share a folder or a
    naming scheme.
    """

    root: Path
    classes: tuple[str, ...]
    label_rule: LabelRule
    dataset: str = "folder"
    images_folder: str = "images"
    labels_folder: str = "annotations"
    image_ending: str = ""  # '' = any of IMAGE_ENDINGS; else such as '_leftImg8bit.png'
    label_ending: str = ".png"
    kind: str = "folder"

    def splits(self) -> tuple[str, ...]:
        """The folders below the images folder, by name."""
        base = self.root / self.images_folder
        if not base.is_dir():
            raise SourceError(
                f"{self.root}: no folder {self.images_folder}/ in it; found {_found(self.root)}. "
                f"{self._expected()}"
            )
        names = sorted(
            entry.name for entry in os.scandir(base) if entry.is_dir() and not entry.name.startswith(".")
        )
        if not names:
            raise SourceError(f"{base}: no folder for a split in it. {self._expected()}")
        return tuple(names)

    def listing(self, split: str) -> Listing:
        """Image paths below the split's folder, each with a label map of the same name."""
        images, labels = self._image_base(split), self._label_base(split)
        label_prefix = f"{self.labels_folder}/{split}"
        rejects: list[Reject] = []
        labelled = {}
        for path in _files_below(labels, rejects, self.root):
            if path.endswith(self.label_ending):
                labelled[path[: -len(self.label_ending)]] = False
            else:
                rejects.append(
                    Reject(f"{label_prefix}/{path}", f"not a label map: expected *{self.label_ending}")
                )
        by_stem: dict[str, list[str]] = {}
        for path in _files_below(images, rejects, self.root):
            stem = self._image_stem(path)
            if stem is None:
                expected = self.image_ending or ", ".join(IMAGE_ENDINGS)
                rejects.append(Reject(self._image_path(split, path), f"not an image: expected {expected}"))
            else:
                by_stem.setdefault(stem, []).append(path)
        names = []
        for stem, paths in by_stem.items():
            fault = self._pair_fault(split, stem, paths, labelled)
            rejects += [Reject(self._image_path(split, path), fault) for path in paths if fault]
            names += [] if fault else paths
        for stem, paired in labelled.items():
            if not paired:
                path = f"{label_prefix}/{stem}{self.label_ending}"
                rejects.append(Reject(path, f"label map without an image {self._image_path(split, stem)}.*"))
        return Listing(tuple(sorted(names)), tuple(sorted(rejects, key=lambda reject: reject.name)))

    def item(self, split: str, name: str) -> SourceItem:
        """The pair whose image is `name`, a path below the split's image folder."""
        stem = self._image_stem(name) or name
        label = f"{self.labels_folder}/{split}/{stem}{self.label_ending}"
        return SourceItem(escape_key(stem), self._image_path(split, name), label, split)

    def read(self, item: SourceItem) -> RawSample:
        """Both files, each read once and refused if it changes meanwhile."""
        image, label = read_unchanged(self.root, item.image_path), read_unchanged(self.root, item.label_path)
        return RawSample(image, label, self.facts(item))

    def facts(self, item: SourceItem) -> dict[str, Any]:
        """More JSON facts for the record; data sets that know some override this."""
        return {}

    def stamp(self, item: SourceItem) -> str:
        """What tells both files from later ones; 'gone' for one that is not there."""
        return (
            f"{file_stamp(f'{self.root}/{item.image_path}')} {file_stamp(f'{self.root}/{item.label_path}')}"
        )

    def settings(self) -> dict[str, Any]:
        """Where the files are below the root, and how they end."""
        return {
            "kind": self.kind,
            "images_folder": self.images_folder,
            "labels_folder": self.labels_folder,
            "image_ending": self.image_ending,
            "label_ending": self.label_ending,
        }

    def _pair_fault(self, split: str, stem: str, paths: list[str], labelled: dict[str, bool]) -> str:
        if stem in labelled:
            labelled[stem] = True
        try:
            stem.encode("utf-8")
        except UnicodeEncodeError:
            return f"the file name is not valid UTF-8 ({os.fsencode(stem)!r}); rename it"
        if len(paths) > 1:
            both = " and ".join(sorted(paths))
            return f"duplicate key {stem!r}: {both} would be one sample; rename all but one"
        if stem not in labelled:
            return f"image without a label map {self.labels_folder}/{split}/{stem}{self.label_ending}"
        return ""

    def _image_stem(self, path: str) -> str | None:
        if self.image_ending:
            return path[: -len(self.image_ending)] if path.endswith(self.image_ending) else None
        stem, ending = os.path.splitext(path)
        return stem if ending.lower() in IMAGE_ENDINGS else None

    def _image_path(self, split: str, name: str) -> str:
        return f"{self.images_folder}/{split}/{name}"

    def _image_base(self, split: str) -> Path:
        base = self.root / self.images_folder / split
        if not base.is_dir():
            raise SourceError(
                f"{base}: there is no such folder; the splits found are "
                f"{', '.join(self.splits()) or 'none'}. {self._expected()}"
            )
        return base

    def _label_base(self, split: str) -> Path:
        base = self.root / self.labels_folder / split
        if not base.is_dir():
            raise SourceError(
                f"{base}: no such folder, so split {split!r} has no label maps. {self._expected()}"
            )
        return base

    def _expected(self) -> str:
        label = f"{self.labels_folder}/SPLIT/NAME{self.label_ending}"
        return f"Expected {self.images_folder}/SPLIT/NAME.jpg with {label}"


def find_labels_folder(root: Path) -> str:
    """`annotations` or `labels`, whichever stands below `root`; SourceError where that is none or both."""
    found = [name for name in LABEL_FOLDERS if (root / name).is_dir()]
    if len(found) != 1:
        state = "both are there, so rename one" if found else f"found {_found(root)}"
        raise SourceError(f"{root}: expected the label maps in {' or '.join(LABEL_FOLDERS)}; {state}")
    return found[0]


def _files_below(base: Path, rejects: list[Reject], root: Path) -> Iterator[str]:
    """Visible files below `base` as relative paths with '/'; folders behind links are refused, since links
    can form circles.
    """
    for folder, subfolders, files in os.walk(base, onerror=_cannot_list):
        relative = Path(folder).relative_to(base).as_posix()
        prefix = "" if relative == "." else f"{relative}/"
        for name in list(subfolders):
            if name.startswith("."):
                subfolders.remove(name)
            elif os.path.islink(os.path.join(folder, name)):
                path = f"{base.relative_to(root)}/{prefix}{name}"
                rejects.append(Reject(path, "a link to a folder; replace it by the folder"))
        yield from (prefix + name for name in files if not name.startswith("."))


def _cannot_list(error: OSError) -> None:
    raise SourceError(f"{error.filename} cannot be listed: {error.strerror}") from error


def _found(folder: Path) -> str:
    if not folder.is_dir():
        return "no such folder"
    return ", ".join(sorted(entry.name for entry in os.scandir(folder))[:12]) or "an empty folder"
