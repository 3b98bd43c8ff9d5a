"""COCO's own formats, of COCO 2017 and of data sets that use them, as semantic classes.

Panoptic: a PNG an image and a JSON a split. Polygons: `instances_*.json` for things and `stuff_*.json` for
stuff. Categories become classes in the order of their ids. What no chosen segment covers is void, or class 0,
`background`, on request; a panoptic map's unlabelled pixels are always void.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maskshards.preprocess.errors import Reject, RejectedInput, SourceError
from maskshards.preprocess.inputs.label_file import npy_bytes
from maskshards.preprocess.inputs.labels import LabelRule
from maskshards.preprocess.inputs.segments import (
    Segment,
    by_size,
    check_polygons,
    checked,
    painted_values,
    panoptic_values,
)
from maskshards.preprocess.inputs.source_files import file_stamp, read_unchanged
from maskshards.preprocess.sources.coco_annotations import AnnotationTable, open_table
from maskshards.preprocess.sources.file_listing import found_in
from maskshards.preprocess.sources.source import Listing, RawSample, Source, SourceItem
from maskshards.shards.errors import counted
from maskshards.shards.format.record import escape_key

PANOPTIC, POLYGONS = "panoptic", "polygons"
CHOICES = ("things", "stuff", "both")
FILES = {"things": "instances", "stuff": "stuff"}  # of polygons
SOME_IMAGES = 20  # that are looked for in each folder where images may be
ALL_THINGS = 183  # the category of COCO's stuff files that stands for every thing
BACKGROUND = "background"
NAME = re.compile(r"(panoptic|instances|stuff)_(.+?)((?:20\d\d)?)\.json")


@dataclass(frozen=True)
class CocoSource(Source):
    """Images with the annotations that JSON files give them."""

    root: Path
    classes: tuple[str, ...]
    label_rule: LabelRule
    dataset: str
    images_folder: str  # with {split}, such as {split}2017
    annotations: str  # PANOPTIC or POLYGONS
    files: tuple[str, ...]  # JSON files below the root with {split}, those painted first before the others
    categories: tuple[int, ...]  # the category id of each class after the background
    background: bool = False
    maps_folder: str = ""  # of panoptic PNGs, with {split}
    kind: str = "coco"

    def splits(self) -> tuple[str, ...]:
        """The splits for which all JSON files are there, `train` before `val`."""
        parts = [_splits_of(self.root, pattern) for pattern in self.files]
        return tuple(split for split in parts[0] if all(split in part for part in parts))

    def listing(self, split: str) -> Listing:
        """The images that the JSON files name and that are there."""
        tables = self._tables(split)
        named: dict[str, bool] = {}
        for table in tables:
            for name, some in table.images().items():
                named[name] = named.get(name, False) or some
        folder = self.root / self.images_folder.replace("{split}", split)
        if not folder.is_dir():
            raise SourceError(f"{folder}: there is no such folder; found {found_in(self.root)}")
        there = {entry.name for entry in os.scandir(folder) if entry.is_file()}
        rejects: list[Reject] = []
        keys: dict[str, str] = {}  # stem -> file name
        empty = 0
        for name, some in sorted(named.items()):
            stem = os.path.splitext(name)[0]
            if os.path.isabs(name) or ".." in name.split("/"):
                rejects.append(Reject(name, "the annotations name a file outside of the images' folder"))
            elif name not in there and not os.path.isfile(folder / name):
                rejects.append(
                    Reject(self._image_path(split, name), "the annotations name it; it is not there")
                )
            elif stem in keys:
                rejects.append(
                    Reject(self._image_path(split, name), f"duplicate key {stem!r}: {keys[stem]} too")
                )
            elif not some and not self.background:
                empty += 1
            else:
                keys[stem] = name
        notes = [f"{split}: {counted(empty, 'image')} without any segment passed over"] * bool(empty)
        spare = len(there - named.keys())
        if self.annotations == POLYGONS and not self.background:
            notes.append(f"{split}: what no polygon covers is void; --background makes it class 0")
        notes += [f"{split}: {counted(spare, 'image')} without annotations passed over"] * bool(spare)
        strays = sum(table.num_strays() for table in tables)
        notes += [f"{split}: {counted(strays, 'annotation')} of images that their file does not list"] * bool(
            strays
        )
        return Listing(tuple(sorted(keys.values())), tuple(rejects), tuple(notes))

    def item(self, split: str, name: str) -> SourceItem:
        """The image of that file name."""
        stem = os.path.splitext(name)[0]
        maps = self.maps_folder.replace("{split}", split)
        label = f"{maps}/{stem}.png" if self.annotations == PANOPTIC else f"{self._json(split)[0]}#{name}"
        return SourceItem(escape_key(stem), self._image_path(split, name), label, split)

    def read(self, item: SourceItem) -> RawSample:
        """The image's bytes, and the values that its segments paint."""
        image = read_unchanged(self.root, item.image_path)
        name = item.image_path.removeprefix(self._image_path(item.split, ""))
        first = 1 if self.background else 0
        classes = {category: label for label, category in enumerate(self.categories, start=first)}
        void = self.label_rule.ignore_index
        other = 0 if self.background else void
        if void is None or other is None:
            raise SourceError("the label rule of COCO has a void value")
        if self.annotations == PANOPTIC:
            data, segments = self._panoptic(item, name)
            self._check_categories(item.split, segments)
            values = panoptic_values(data, segments, classes, void, other)
            return RawSample(image, npy_bytes(values), {"label_sha256": hashlib.sha256(data).hexdigest()})
        tables = self._tables(item.split)
        height, width = tables[0].size(name)
        segments = [segment for table in tables for segment in by_size(checked(table.annotations(name)))]
        self._check_categories(item.split, segments)
        return RawSample(image, npy_bytes(painted_values(segments, classes, height, width, other)))

    def stamp(self, item: SourceItem) -> str:
        """What changes when the image or the annotations do."""
        paths = [item.image_path, *self._json(item.split)]
        paths += [item.label_path] if self.annotations == PANOPTIC else []
        return " ".join(file_stamp(f"{self.root}/{path}") for path in paths)

    def settings(self) -> dict[str, Any]:
        """Which files were read, and which categories are classes."""
        names = ("kind", "images_folder", "annotations", "background")
        facts = {name: getattr(self, name) for name in names}
        facts |= {"maps_folder": self.maps_folder} if self.maps_folder else {}
        return {**facts, "files": list(self.files), "categories": list(self.categories)}

    def _panoptic(self, item: SourceItem, name: str) -> tuple[bytes, Sequence[Segment]]:
        found = self._tables(item.split)[0].annotations(name)
        if len(found) != 1:
            raise RejectedInput(f"{len(found)} panoptic annotations; expected one")
        folder, map_name = item.label_path.rpartition("/")[0], found[0].get("file_name")
        if not isinstance(map_name, str) or "\0" in map_name or ".." in map_name.split("/"):
            raise RejectedInput(f"its annotation names the panoptic map {map_name!r:.80}")
        data = read_unchanged(self.root, f"{folder}/{map_name}")
        return data, checked(found[0].get("segments_info"), has_id=True)

    def _check_categories(self, split: str, segments: Sequence[Segment]) -> None:
        """RejectedInput for a segment of a category without a name: it would be painted as void."""
        known = frozenset().union(*(table.category_ids for table in self._tables(split)))
        for segment in segments:
            if segment["category_id"] not in known:
                raise RejectedInput(
                    f"annotation {segment.get('id')} is of category {segment['category_id']}, which the"
                    " annotations do not list"
                )

    def _tables(self, split: str) -> list[AnnotationTable]:
        paths = [self.root / name for name in self._json(split)]
        missing = [path for path in paths if not path.is_file()]
        if missing:
            raise SourceError(f"{missing[0]}: no such file; the splits found are {', '.join(self.splits())}")
        return [open_table(str(path)) for path in paths]

    def _json(self, split: str) -> list[str]:
        return [name.replace("{split}", split) for name in self.files]

    def _image_path(self, split: str, name: str) -> str:
        folder = self.images_folder.replace("{split}", split)
        return f"{folder}/{name}" if folder else name


def open_coco(root: Path, annotations: str, segments: str, background: bool) -> CocoSource:
    """The data set at `root`; SourceError where files are missing.

    `annotations` '' = panoptic where that is there; `segments` '' = all there are.
    """
    found = _find_files(root)
    kind = annotations or (PANOPTIC if "panoptic" in found else POLYGONS)
    if kind == PANOPTIC:
        wanted = ["panoptic"]
    else:
        check_polygons()
        both = [FILES["stuff"], FILES["things"]]  # things are painted over stuff
        wanted = (
            [FILES[segments]] if segments in FILES else [name for name in both if name in found or segments]
        )
    missing = [name for name in wanted or ["instances"] if name not in found]
    if missing:
        raise SourceError(
            f"{root}: no annotations/{missing[0]}_SPLIT.json; found {found_in(root)},"
            f" in annotations/ {found_in(root / 'annotations')}"
        )
    files = tuple(found[name] for name in wanted)
    chosen = _categories(root, files, segments if kind == PANOPTIC else "")
    names = tuple(([BACKGROUND] if background else []) + [name for _, name in chosen])
    rule = LabelRule(len(names), 255 if len(names) <= 255 else 65535)
    images = _find_images(root, files[0])
    categories = tuple(category for category, _ in chosen)
    maps = _find_maps(root, files[0]) if kind == PANOPTIC else ""
    if background and kind == PANOPTIC and segments not in FILES:
        raise SourceError("--background is what --segments things, or stuff, leave over; name one of them")
    return CocoSource(root, names, rule, "coco", images, kind, files, categories, background, maps)


def _find_files(root: Path) -> dict[str, str]:
    """Kind of annotations -> pattern of their JSON files."""
    found: dict[str, str] = {}
    if (root / "annotations").is_dir():
        for path in sorted((root / "annotations").glob("*.json")):
            match = NAME.fullmatch(path.name)
            if match:
                found.setdefault(match[1], f"annotations/{match[1]}_{{split}}{match[3]}.json")
    if not found and any(root.glob("*/_annotations.coco.json")):
        found["instances"] = "{split}/_annotations.coco.json"
    return found


def _find_images(root: Path, pattern: str) -> str:
    year = pattern.removesuffix(".json").rpartition("{split}")[2] if pattern.endswith(".json") else ""
    candidates = (
        ["{split}"]
        if pattern.startswith("{split}")
        else [f"{{split}}{year}", f"images/{{split}}{year}", "images"]
    )
    split = next(iter(_splits_of(root, pattern)))
    some = sorted(open_table(str(root / pattern.replace("{split}", split))).images())[:SOME_IMAGES]
    there = [name for name in candidates if (root / name.replace("{split}", split)).is_dir()]
    for candidate in (*there, ""):  # names may be paths below the root, or below a folder of them
        if any(os.path.isfile(root / candidate.replace("{split}", split) / name) for name in some):
            return candidate
    if there:
        return there[0]
    raise SourceError(f"{root}: no {' or '.join(candidates)} for split {split}; found {found_in(root)}")


def _find_maps(root: Path, pattern: str) -> str:
    """The folder of panoptic PNGs: a second archive, inside of that of the annotations."""
    usual = pattern.removesuffix(".json")
    split = next(iter(_splits_of(root, pattern)))
    for candidate in (usual, usual.removeprefix("annotations/")):
        if (root / candidate.replace("{split}", split)).is_dir():
            return candidate
    folder = usual.replace("{split}", split)
    raise SourceError(f"{root}: no {folder}/ with the panoptic maps; unzip {folder}.zip there")


def _splits_of(root: Path, pattern: str) -> list[str]:
    before, _, after = pattern.partition("{split}")
    names = (path.relative_to(root).as_posix() for path in root.glob(pattern.replace("{split}", "*")))
    return sorted(name.removeprefix(before).removesuffix(after) for name in names)


def _categories(root: Path, files: tuple[str, ...], segments: str) -> list[tuple[int, str]]:
    """(category id, name) of the classes, by id; SourceError where splits do not agree."""
    known: dict[int, str] = {}
    for category in _all_categories(root, files):
        thing = category.get("isthing", 1)
        if segments in ("", "both", "things" if thing else "stuff"):
            name = known.setdefault(category["id"], category["name"])
            if name != category["name"]:
                raise SourceError(f"{root}: category {category['id']} is {name!r} and {category['name']!r}")
    if any(name.startswith("annotations/stuff_") for name in files):
        known.pop(ALL_THINGS, None)
    if len(set(known.values())) != len(known) or not known:
        raise SourceError(f"{root}: the annotations have no categories, or two of one name")
    return sorted(known.items())


def _all_categories(root: Path, files: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    for pattern in files:
        for split in _splits_of(root, pattern):
            yield from open_table(str(root / pattern.replace("{split}", split))).categories()
