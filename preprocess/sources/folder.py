"""A data set as files: images in one folder tree, label maps of the same names in another, or in the same.

Folders are patterns (`images`, `{split}/images`), splits are folders, lists of names or a drawn share. Images
and label maps are paired by their path without the ending. A file whose ending is neither's is passed over
and counted; an image or a label map without its partner, or two files of one name, are refused inputs.
"""

from __future__ import annotations

import os
from collections.abc import Container, Iterable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from maskshards.preprocess.errors import Reject, SourceError
from maskshards.preprocess.inputs.colours import ColourTable
from maskshards.preprocess.inputs.labels import LabelRule
from maskshards.preprocess.inputs.source_files import file_stamp, read_unchanged
from maskshards.preprocess.sources.file_listing import (
    IMAGE_ENDINGS,
    files_below,
    found_in,
    passed_over_note,
    path_below,
    same_form,
    without_ending,
    without_image_ending,
)
from maskshards.preprocess.sources.folder_pattern import FolderPattern
from maskshards.preprocess.sources.siblings import siblings
from maskshards.preprocess.sources.source import Listing, RawSample, Source, SourceItem
from maskshards.preprocess.sources.splits import (
    DRAWN,
    LIST_ENDING,
    Listed,
    is_validation,
    listed_splits,
    listed_stems,
    names_nothing,
)
from maskshards.shards.errors import counted
from maskshards.shards.format.record import escape_key

APART = "//"  # between the image's and the label map's path in a name, where the second does not follow
Found = dict[str, list[str]]  # stem -> paths below the base


@dataclass(frozen=True)
class FolderSource(Source):
    """Pairs of files below `root`; endings tell images from labels in a shared folder or naming scheme."""

    root: Path
    classes: tuple[str, ...]
    label_rule: LabelRule
    dataset: str = "folder"
    images_folder: str = "images"  # see `folder_pattern`
    labels_folder: str = "annotations"
    image_ending: str = ""  # '' = any of IMAGE_ENDINGS; else such as '_leftImg8bit.png'
    label_ending: str = ".png"
    kind: str = "folder"
    lists: str = ""  # folder of lists of names, below the root or absolute; the folders are flat then
    val_share: float = 0.0  # of flat folders: this share is the validation split; 0 = folders for splits
    colours: ColourTable | None = None  # of label maps that show each class in a colour
    palette: tuple[tuple[int, int, int], ...] | None = None

    def splits(self) -> tuple[str, ...]:
        """The splits with label maps; those without are named by `left_out`."""
        found = self._found_splits()
        return tuple(split for split in found if self._has_labels(split)) or found

    def left_out(self) -> tuple[str, ...]:
        """One line for each split that has images and no label maps."""
        kept = self.splits()
        missing = [split for split in self._found_splits() if split not in kept]
        for split in missing if self.lists else ():
            wanted, base = self._wanted(split), self._images.base(split)
            images = (self._image_stem(split, path) for path in files_below(self.root, base, []))
            if wanted and not _any_of(wanted, images):
                raise SourceError(names_nothing(self._list(split), wanted, f"an image in {base}/"))
        return tuple(
            f"{split}: no label maps in {self._labels.base(split)}/, so this split is passed over"
            for split in missing
        )

    def listing(self, split: str) -> Listing:
        """Image paths of the split, each with a label map of the same name."""
        self._check_bases(split)
        rejects: list[Reject] = []
        images, labels, notes = self._all_files(split, rejects)
        wanted = self._wanted(split)
        if wanted is not None:
            images, labels, outside = self._restrict(images, labels, wanted, split, rejects)
            notes += [f"{split}: {counted(outside, 'image')} that its list does not name passed over"] * bool(
                outside
            )
        elif self.val_share:
            mine = partial(self._is_drawn, split)
            images = {stem: paths for stem, paths in images.items() if mine(stem)}
            labels = {stem: paths for stem, paths in labels.items() if mine(stem)}
            if not images:
                raise SourceError(
                    f"--val-share {self.val_share} leaves no image for {split}; give another, or --lists DIR"
                )
        names = self._pair(split, images, labels, rejects, notes)
        return Listing(
            tuple(sorted(names)), tuple(sorted(rejects, key=lambda reject: reject.name)), tuple(notes)
        )

    def item(self, split: str, name: str) -> SourceItem:
        """The pair whose image is `name`, a path below the split's image folder."""
        image, _, label = name.partition(APART)
        stem = self._image_stem(split, image) or image
        label = label or self._labels.path(split, stem) + self.label_ending
        return SourceItem(
            escape_key(stem), self._image_path(split, image), self._label_path(split, label), split
        )

    def read(self, item: SourceItem) -> RawSample:
        """Both files, each read once and refused if it changes meanwhile."""
        image, label = read_unchanged(self.root, item.image_path), read_unchanged(self.root, item.label_path)
        facts = self.facts(item)
        if self.colours is not None:
            facts, label = {**facts, **self.colours.facts(label)}, self.colours.values(label)
        return RawSample(image, label, facts)

    def facts(self, item: SourceItem) -> dict[str, Any]:
        """More JSON facts for the record; data sets that know some override this."""
        return {}

    def stamp(self, item: SourceItem) -> str:
        """Sizes and times of change of both files; 'gone' for one that is not there."""
        return (
            f"{file_stamp(f'{self.root}/{item.image_path}')} {file_stamp(f'{self.root}/{item.label_path}')}"
        )

    def settings(self) -> dict[str, Any]:
        """Where the files are below the root, and how they end."""
        facts: dict[str, Any] = {
            "kind": self.kind,
            "images_folder": self.images_folder,
            "labels_folder": self.labels_folder,
            "image_ending": self.image_ending,
            "label_ending": self.label_ending,
        }
        facts |= {"lists": self.lists} if self.lists else {}
        facts |= {"val_share": self.val_share} if self.val_share else {}
        return facts | ({"colours": self.colours.to_json()} if self.colours else {})

    @property
    def _flat(self) -> bool:
        return bool(self.lists or self.val_share)

    @cached_property
    def _images(self) -> FolderPattern:
        return FolderPattern(self.images_folder, self._flat)

    @cached_property
    def _labels(self) -> FolderPattern:
        return FolderPattern(self.labels_folder, self._flat)

    def _found_splits(self) -> tuple[str, ...]:
        if self.lists:
            return listed_splits(self.root / self.lists)
        if self.val_share:
            return DRAWN
        base = self.root / self.images_folder
        if "{split}" not in self.images_folder and not base.is_dir():
            raise SourceError(
                f"{self.root}: no folder {self.images_folder}/ in it; found {found_in(self.root)}. "
                f"{self._expected()}"
            )
        names = self._images.splits(self.root)
        if not names:
            raise SourceError(f"{base}: no folder for a split in it. {self._expected()}")
        return names

    def _has_labels(self, split: str) -> bool:
        base = self._labels.base(split)
        if not (self.root / base).is_dir():
            return False
        if not self.lists:
            shared = self._images == self._labels  # then the ending tells which files are label maps
            stem = self._label_stem if shared else self._labels.stem
            return any(stem(split, path) is not None for path in files_below(self.root, base, []))
        maps = {listed.label for listed in (self._wanted(split) or {}).values()}
        return _any_of(maps, (self._label_stem(split, path) for path in files_below(self.root, base, [])))

    def _all_files(self, split: str, rejects: list[Reject]) -> tuple[Found, Found, list[str]]:
        """Image paths and label paths by stem, and notes on files that are neither."""
        bases = self._images.base(split), self._labels.base(split)
        images: Found = {}
        labels: Found = {}
        notes = []
        for base, other in (bases, bases[::-1]) if bases[0] != bases[1] else (bases,):
            skipped = path_below(base, other)
            strange = []
            for path in files_below(self.root, base, rejects, skipped):
                stem, found = self._role(split, path, is_image=base == bases[0], is_label=base == bases[1])
                if found is None:
                    strange.append(path)
                else:
                    (images if found else labels).setdefault(stem, []).append(path)
            if strange:
                notes.append(passed_over_note(base or ".", strange, "with other endings"))
        beside = {} if self.lists else siblings(labels, images)
        if beside:
            words = ", ".join(sorted(f"NAME{word}{self.label_ending}" for word in set(beside.values())))
            notes.append(
                f"{bases[1] or '.'}: {counted(len(beside), 'file')} beside label maps passed over ({words})"
            )
        return images, {stem: paths for stem, paths in labels.items() if stem not in beside}, notes

    def _role(self, split: str, path: str, *, is_image: bool, is_label: bool) -> tuple[str, bool | None]:
        """The stem of a path and whether it is an image; None where it is neither. Longer endings win."""
        image = self._image_stem(split, path) if is_image else None
        label = self._label_stem(split, path) if is_label else None
        if image is not None and label is not None:
            image = image if len(self.image_ending) > len(self.label_ending) else None
        stem = image if image is not None else label
        return (path, None) if stem is None else (stem, image is not None)

    def _image_stem(self, split: str, path: str) -> str | None:
        bare = without_ending(path, self.image_ending) if self.image_ending else without_image_ending(path)
        return None if bare is None else self._images.stem(split, bare)

    def _label_stem(self, split: str, path: str) -> str | None:
        bare = without_ending(path, self.label_ending)
        return None if bare is None else self._labels.stem(split, bare)

    def _pair(
        self, split: str, images: Found, labels: Found, rejects: list[Reject], notes: list[str]
    ) -> Iterable[str]:
        """The names of complete pairs; everything else is added to `rejects`, what is odd to `notes`."""
        forms: dict[str, list[str]] = {}
        for stem in labels:
            forms.setdefault(same_form(stem), []).append(stem)
        names, paired = [], set()
        users: Found = {}  # label map -> images
        for stem, paths in sorted(images.items()):
            twins = [stem] if stem in labels else forms.get(same_form(stem), [])
            paired.update(twins)
            maps = [path for twin in twins for path in labels[twin]]
            fault = self._fault(split, stem, paths, maps)
            for path in maps[: not fault]:
                (others := users.setdefault(path, [])).append(paths[0])
                if len(others) > 1 and not self.lists:  # names that are equal to the eye
                    fault = f"{others[0]!r} has the same label map, {path}; rename or remove one of them"
            rejects += [Reject(self._image_path(split, path), fault) for path in paths if fault]
            if not fault:
                usual = self._labels.path(split, stem) + self.label_ending
                names.append(paths[0] if maps[0] == usual else f"{paths[0]}{APART}{maps[0]}")
        for stem in labels.keys() - paired:
            expected = f"{self._image_path(split, self._images.path(split, stem))}{self.image_ending or '.*'}"
            reason = f"label map without an image {expected}"
            rejects += [Reject(self._label_path(split, path), reason) for path in labels[stem]]
        shared = sorted((path, images) for path, images in users.items() if len(images) > 1)
        if shared and self.lists:
            path, (first, second, *_) = shared[0]
            notes.append(
                f"{split}: its list gives {len(shared)} label maps to several images each, such as {path} to"
                f" {first} and {second}"
            )
        return names

    def _fault(self, split: str, stem: str, paths: list[str], maps: list[str]) -> str:
        try:
            "".join((stem, *maps)).encode("utf-8")
        except UnicodeEncodeError:
            return f"the file name is not valid UTF-8 ({os.fsencode(stem)!r}); rename it"
        for files, what in ((paths, ""), (maps, "label maps of ")):
            if len(files) > 1:
                both = " and ".join(sorted(files))
                return f"duplicate key {stem!r}: {what}{both} would be one sample; rename all but one"
        if not maps:
            usual = self._labels.path(split, stem) + self.label_ending
            return f"image without a label map {self._label_path(split, usual)}"
        return ""

    def _wanted(self, split: str) -> dict[str, Listed] | None:
        """Composed stem -> what the split's list says of it; None without lists."""
        if not self.lists:
            return None
        endings = (self.image_ending,) if self.image_ending else IMAGE_ENDINGS
        folders = self.images_folder, self.labels_folder
        return listed_stems(self._list(split), *folders, endings, self.label_ending)

    def _list(self, split: str) -> Path:
        return self.root / self.lists / f"{split}{LIST_ENDING}"

    def _restrict(
        self, images: Found, labels: Found, wanted: dict[str, Listed], split: str, rejects: list[Reject]
    ) -> tuple[Found, Found, int]:
        """What the list names, and the number of images that it does not."""
        mine = {stem: paths for stem, paths in images.items() if same_form(stem) in wanted}
        there = {same_form(stem) for stem in mine}
        for name, listed in wanted.items():
            if name not in there:
                reason = (
                    f"line {listed.line} names {name!r}, of which there is no image in {self.images_folder}/"
                )
                rejects.append(Reject(f"{self.lists}/{split}.txt", reason))
        forms: Found = {}
        for stem, paths in labels.items():
            forms.setdefault(same_form(stem), []).extend(paths)
        maps = {stem: forms.get(wanted[same_form(stem)].label, []) for stem in mine}
        return mine, {stem: paths for stem, paths in maps.items() if paths}, len(images) - len(mine)

    def _is_drawn(self, split: str, stem: str) -> bool:
        return is_validation(stem, self.val_share) == (split == DRAWN[1])

    def _image_path(self, split: str, name: str) -> str:
        return "/".join(part for part in (self._images.base(split), name) if part)

    def _label_path(self, split: str, name: str) -> str:
        return "/".join(part for part in (self._labels.base(split), name) if part)

    def _check_bases(self, split: str) -> None:
        if not (self.root / self._images.base(split)).is_dir():
            raise SourceError(
                f"{self.root / self._images.base(split)}: there is no such folder; the splits found are "
                f"{', '.join(self.splits()) or 'none'}. {self._expected()}"
            )
        if not self._has_labels(split):
            labels = self._labels.base(split)
            if not (self.root / labels).is_dir():
                raise SourceError(
                    f"{self.root / labels}: no such folder, so split {split!r} has no label maps; name the "
                    f"splits to build with --splits. {self._expected()}"
                )
            if self.lists:
                what = f"a label map in {labels}/"
                raise SourceError(names_nothing(self._list(split), self._wanted(split) or {}, what))

    def _expected(self) -> str:
        images, labels = (f.base("SPLIT") or "." for f in (self._images, self._labels))
        return (
            f"Expected {images}/NAME{self.image_ending or '.jpg'} with {labels}/NAME{self.label_ending}."
            " Other layouts: --images-folder and --labels-folder, in which {split} stands for the split's"
            " name; for folders without splits --val-share 0.1 or --lists DIR; see docs/custom-data.md"
        )


def _any_of(wanted: Container[str], stems: Iterable[str | None]) -> bool:
    return any(stem is not None and same_form(stem) in wanted for stem in stems)
