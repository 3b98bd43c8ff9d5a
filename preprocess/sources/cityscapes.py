"""Cityscapes with its fine annotations, as unzipped: leftImg8bit/SPLIT/CITY/ and gtFine/SPLIT/CITY/.

Of the 34 ids in `*_gtFine_labelIds.png` the 19 of the benchmark are classes and the others void (Cordts et
al., "The Cityscapes Dataset for Semantic Urban Scene Understanding", CVPR 2016). Copies
that hold train ids alone, as cityscapesscripts writes them, are read too. The label maps of `test` hold no
labels, so that split is left out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from maskshards.preprocess.errors import SourceError
from maskshards.preprocess.inputs.classes import packaged_table
from maskshards.preprocess.sources.file_listing import files_below, found_in
from maskshards.preprocess.sources.folder import FolderSource
from maskshards.preprocess.sources.source import Listing

COUNTS = {"train": 2975, "val": 500}  # pairs in the release
IDS = range(34)  # of the release's labels; -1, the licence plate, is in no label map
IDS_ENDING = "_gtFine_labelIds.png"
TRAIN_IDS_ENDING = "_gtFine_labelTrainIds.png"  # made by cityscapesscripts: 0..18, and void
TRAIN_VOID = (255,)


@dataclass(frozen=True)
class CityscapesSource(FolderSource):
    """The splits with labels; a copy with other counts than the release gets a note."""

    dataset: str = "cityscapes"
    kind: str = "cityscapes"
    images_folder: str = "leftImg8bit"
    labels_folder: str = "gtFine"
    image_ending: str = "_leftImg8bit.png"
    label_ending: str = IDS_ENDING

    def splits(self) -> tuple[str, ...]:
        """`train` and `val`, those that are there."""
        found = tuple(split for split in super().splits() if split in COUNTS)
        if not found:
            raise SourceError(f"{self.root}: no train/ or val/ in leftImg8bit/ and gtFine/")
        return found

    def listing(self, split: str) -> Listing:
        """The pairs of the split."""
        found = super().listing(split)
        expected = COUNTS.get(split, len(found.names))
        note = f"{split}: {len(found.names)} pairs; Cityscapes' release has {expected}"
        return found if len(found.names) == expected else replace(found, notes=(*found.notes, note))


def open_cityscapes(root: Path) -> CityscapesSource:
    """The release at `root`. SourceError where one of its two packages is missing, or holds no label maps."""
    images, labels = (_find(root, folder) for folder in ("leftImg8bit", "gtFine"))
    if not any((root / labels / split).is_dir() for split in COUNTS):
        raise SourceError(f"{root}: no train/ or val/ in {labels}/; found {found_in(root / labels)}")
    ending, known, found = IDS_ENDING, tuple(IDS), _endings(root / labels)
    table = packaged_table("cityscapes")
    if IDS_ENDING not in found:
        if TRAIN_IDS_ENDING not in found:
            raise SourceError(
                f"{root / labels}: no label map ends in {IDS_ENDING} or {TRAIN_IDS_ENDING};"
                f" unzip gtFine_trainvaltest.zip again. Found {', '.join(sorted(found)[:6]) or 'no files'}"
            )
        ending, known = TRAIN_IDS_ENDING, TRAIN_VOID
        table = replace(table, values=tuple(range(len(table.names))))
    return CityscapesSource(
        root,
        table.names,
        table.rule(known),
        palette=table.palette,
        images_folder=images,
        labels_folder=labels,
        label_ending=ending,
    )


def _find(root: Path, folder: str) -> str:
    """Where a package lies below the root: by itself, or in the folder that some programs unzip it to."""
    for place in (folder, f"{folder}_trainvaltest/{folder}", f"{folder}_trainvaltest"):
        if any((root / place / split).is_dir() for split in (*COUNTS, "test")):
            return place
    if (root / folder).is_dir():
        return folder
    raise SourceError(
        f"{root}: no {folder}/ in it; unzip {folder}_trainvaltest.zip there. Found {found_in(root)}"
    )


def _endings(folder: Path) -> set[str]:
    """What the names in it end in, from `_gtFine` on, of all files up to the first with label ids."""
    found: set[str] = set()
    for split in COUNTS:
        for path in files_below(folder, split, []) if (folder / split).is_dir() else ():
            start = path.find("_gtFine")
            found.add(path[start:] if start >= 0 else Path(path).suffix)
            if path.endswith(IDS_ENDING):
                return found
    return found
