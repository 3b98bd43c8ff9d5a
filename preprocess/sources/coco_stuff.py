"""COCO-Stuff's pixel maps (stuffthingmaps_trainval2017) beside the images of COCO 2017.

A map's value is the category id less one, 255 is void; eleven of the 182 ids are in no image, which leaves
171 classes (Caesar et al., "COCO-Stuff: Thing and Stuff Classes in Context", CVPR 2018).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from maskshards.preprocess.errors import SourceError
from maskshards.preprocess.inputs.classes import packaged_table
from maskshards.preprocess.sources.file_listing import found_in
from maskshards.preprocess.sources.folder import FolderSource
from maskshards.preprocess.sources.folder_pattern import FolderPattern

VOID = (255,)
YEAR = "{split}2017"
IMAGES = (f"images/{YEAR}", YEAR)
MAPS = tuple(
    f"{place}{YEAR}" for place in ("annotations/", "stuffthingmaps/", "stuffthingmaps_trainval2017/", "")
)


def open_coco_stuff(root: Path, values_are_ids: bool = False) -> FolderSource:
    """The data set at `root`. SourceError where images or maps are missing.

    With `values_are_ids` a map's value is the category id itself and 0 is void, as in copies that others
    made.
    """
    images = _first(root, IMAGES, ".jpg", "train2017.zip and val2017.zip")
    labels = _first(root, MAPS, ".png", "stuffthingmaps_trainval2017.zip")
    table = packaged_table("cocostuff")
    void: tuple[int, ...] = VOID
    if values_are_ids:
        table, void = replace(table, values=tuple(value + 1 for value in table.values)), (0, *VOID)
    return FolderSource(
        root,
        table.names,
        table.rule(void),
        dataset="coco-stuff",
        images_folder=images,
        labels_folder=labels,
        image_ending=".jpg",
        kind="coco-stuff",
        palette=table.palette,
    )


def _first(root: Path, patterns: tuple[str, ...], ending: str, packages: str) -> str:
    """The first pattern with a split's folder that holds files of that ending."""
    for pattern in patterns:
        folders = FolderPattern(pattern)
        for split in folders.splits(root):
            if any((root / folders.base(split)).glob(f"*{ending}")):
                return pattern
    raise SourceError(
        f"{root}: no {' or '.join(patterns)} with {ending} files; unzip {packages} there."
        f" Found {found_in(root)}"
    )
