"""PASCAL VOC's segmentation task, as unzipped: JPEGImages/, SegmentationClass/, ImageSets/Segmentation/.

Label maps are palette PNGs whose index is the class, 0 the background, 255 the void border of objects
(Everingham et al., "The PASCAL Visual Object Classes Challenge"). The lists say which image is in which
split; images of the other tasks are passed over.

Annotation tools write this layout too, with classes of their own: CVAT names them and their colours in
labelmap.txt, labelme in class_names.txt and without lists.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from pathlib import Path

from maskshards.preprocess.errors import SourceError
from maskshards.preprocess.inputs.classes import packaged_table
from maskshards.preprocess.inputs.colours import ColourTable
from maskshards.preprocess.inputs.labels import LabelRule
from maskshards.preprocess.sources.file_listing import found_in
from maskshards.preprocess.sources.folder import FolderSource
from maskshards.shards.errors import printable

logger = logging.getLogger(__name__)

VOID = (255,)
IMAGES, LISTS = "JPEGImages", "ImageSets/Segmentation"
MASKS = ("SegmentationClass", "SegmentationClassPNG")  # the second of older versions of labelme
PLACES = ("", "VOC2012", "VOCdevkit/VOC2012", "VOC20[01]?", "VOCdevkit/VOC20[01]?")  # below the root
OWN_COLOURS, OWN_CLASSES = "labelmap.txt", "class_names.txt"
NAME = re.compile(r"(\d{4}_)?\d{6}\.jpg")  # of the release's images


@dataclass(frozen=True, slots=True)
class VocLabels:
    """What the label maps of a data set of one's own hold."""

    classes: tuple[str, ...]
    rule: LabelRule
    colours: ColourTable | None


def voc_place(root: Path) -> str:
    """The folder below the root that JPEGImages/ stands in, with '/' at its end. SourceError without one."""
    found = (path for place in PLACES for path in (sorted(root.glob(place)) if place else [root]))
    folder = next((path for path in found if (path / IMAGES).is_dir()), None)
    if folder is None:
        raise SourceError(f"{root}: no {IMAGES}/ in it or in VOCdevkit/VOC2012/; found {found_in(root)}")
    return "" if folder == root else f"{folder.relative_to(root).as_posix()}/"


def own_table(root: Path, name: str) -> Path | None:
    """The class list or colour table that an annotation tool left; None without one."""
    paths = (root / voc_place(root) / name, root / name)
    return next((path for path in paths if path.is_file()), None)


def open_voc(
    root: Path,
    labels_folder: str = "",
    own: VocLabels | None = None,
    lists: str = "",
    val_share: float = 0.0,
    endings: tuple[str, str] = ("", ""),
) -> FolderSource:
    """The data set at `root`, the one that JPEGImages/ or VOCdevkit/ stands in.

    `labels_folder` instead of SegmentationClass, such as SegmentationClassAug; `own` instead of the release's
    21 classes; `endings` of images and label maps. SourceError where a folder is missing.
    """
    place = voc_place(root)
    masks = labels_folder or next((name for name in MASKS if any((root / place / name).glob("*.png"))), "")
    masks = masks or MASKS[0]
    if not (root / place / masks).is_dir():
        raise SourceError(f"{root / place}: no {masks}/ in it; found {found_in(root / place)}")
    if not (lists or val_share):
        lists = place + LISTS
        if not (root / lists).is_dir():
            raise SourceError(
                f"{root / place}: no {LISTS}/ in it; found {found_in(root / place)}. Draw the splits with"
                " --val-share 0.1, or give lists with --lists DIR"
            )
    if own is None:
        _tell_if_own(root / place / IMAGES)
    table = packaged_table("voc")
    colours = own.colours if own else None
    return FolderSource(
        root,
        own.classes if own else table.names,
        own.rule if own else table.rule(VOID),
        dataset="voc",
        images_folder=place + IMAGES,
        labels_folder=place + masks,
        image_ending=endings[0] or (".jpg" if own is None else ""),
        label_ending=endings[1] or ".png",
        kind="voc",
        lists=lists,
        val_share=val_share,
        colours=colours,
        palette=(colours.palette() if colours else None) if own else table.palette,
    )


def _tell_if_own(images: Path) -> None:
    first = next((path.name for path in images.iterdir() if not path.name.startswith(".")), "")
    if not NAME.fullmatch(first):
        logger.warning(
            "voc: images are not named like those of PASCAL VOC (%s), whose 21 classes are used all the same;"
            " for classes of your own give --classes or --colours",
            printable(first),
        )
