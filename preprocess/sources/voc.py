"""PASCAL VOC's segmentation task, as unzipped: JPEGImages/, SegmentationClass/, ImageSets/Segmentation/.

Label maps are palette PNGs whose index is the class, 0 the background, 255 the void border of objects
(Everingham et al., "The PASCAL Visual Object Classes Challenge"). The lists say which image is in which
split; images of the other tasks are passed over.
"""

from __future__ import annotations

from pathlib import Path

from maskshards.preprocess.errors import SourceError
from maskshards.preprocess.inputs.classes import packaged_table
from maskshards.preprocess.sources.file_listing import found_in
from maskshards.preprocess.sources.folder import FolderSource

VOID = (255,)
IMAGES, MASKS, LISTS = "JPEGImages", "SegmentationClass", "ImageSets/Segmentation"
PLACES = ("", "VOC2012/", "VOCdevkit/VOC2012/", "VOC2007/", "VOCdevkit/VOC2007/")  # below the root


def open_voc(root: Path, labels_folder: str = "") -> FolderSource:
    """The data set at `root`, the one that JPEGImages/ or VOCdevkit/ stands in. `labels_folder` instead of
    SegmentationClass, such as SegmentationClassAug. SourceError where a folder is missing.
    """
    masks = labels_folder or MASKS
    place = next((place for place in PLACES if (root / place / IMAGES).is_dir()), None)
    if place is None:
        raise SourceError(f"{root}: no {IMAGES}/ in it or in VOCdevkit/VOC2012/; found {found_in(root)}")
    for folder in (masks, LISTS):
        if not (root / place / folder).is_dir():
            raise SourceError(f"{root / place}: no {folder}/ in it; found {found_in(root / place)}")
    table = packaged_table("voc")
    return FolderSource(
        root,
        table.names,
        table.rule(VOID),
        dataset="voc",
        images_folder=place + IMAGES,
        labels_folder=place + masks,
        image_ending=".jpg",
        kind="voc",
        lists=place + LISTS,
        palette=table.palette,
    )
