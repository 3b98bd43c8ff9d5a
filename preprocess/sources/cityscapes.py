"""Cityscapes with its fine annotations, as unzipped: leftImg8bit/SPLIT/CITY/ and gtFine/SPLIT/CITY/.

Of the 34 ids in `*_gtFine_labelIds.png` the 19 of the benchmark are classes and the others void (Cordts et
al., "The Cityscapes Dataset for Semantic Urban Scene Understanding", CVPR 2016). The label maps of `test`
hold no labels, so that split is left out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from maskshards.preprocess.errors import SourceError
from maskshards.preprocess.inputs.classes import packaged_table
from maskshards.preprocess.sources.folder import FolderSource, found_in
from maskshards.preprocess.sources.source import Listing

COUNTS = {"train": 2975, "val": 500}  # pairs in the release
IDS = range(34)  # of the release's labels; -1, the licence plate, is in no label map


@dataclass(frozen=True)
class CityscapesSource(FolderSource):
    """The splits with labels; a copy with other counts than the release gets a note."""

    dataset: str = "cityscapes"
    kind: str = "cityscapes"
    images_folder: str = "leftImg8bit"
    labels_folder: str = "gtFine"
    image_ending: str = "_leftImg8bit.png"
    label_ending: str = "_gtFine_labelIds.png"

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
    """The release at `root`. SourceError where one of its two folders is missing."""
    for folder in ("leftImg8bit", "gtFine"):
        if not (root / folder).is_dir():
            raise SourceError(
                f"{root}: no {folder}/ in it; unzip {folder}_trainvaltest.zip there. Found {found_in(root)}"
            )
    table = packaged_table("cityscapes")
    return CityscapesSource(root, table.names, table.rule(IDS), palette=table.palette)
