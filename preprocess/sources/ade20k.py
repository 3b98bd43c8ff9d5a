"""ADE20K's scene parsing release, ADEChallengeData2016: a folder pair with known counts and classes.

Label value 0 is "other objects" and void, k is class k - 1 (Zhou et al., "Scene Parsing through ADE20K
Dataset", CVPR 2017; counts and class table from the release's objectInfo150.txt). A copy with other counts
is incomplete or something else, so the build stops unless told otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from maskshards.preprocess.errors import SourceError
from maskshards.preprocess.inputs.classes import ade20k_classes, ade20k_palette, read_object_info
from maskshards.preprocess.inputs.labels import LabelRule
from maskshards.preprocess.inputs.source_files import list_lines
from maskshards.preprocess.sources.folder import FolderSource
from maskshards.preprocess.sources.source import Listing, SourceItem

COUNTS = {"training": 20210, "validation": 2000}
CLASS_TABLE, SCENE_TABLE = "objectInfo150.txt", "sceneCategories.txt"


@dataclass(frozen=True)
class Ade20kSource(FolderSource):
    """The two splits of the release, with their counts checked unless `allow_count_mismatch`."""

    dataset: str = "ade20k"
    labels_folder: str = "annotations"
    kind: str = "ade20k"
    allow_count_mismatch: bool = False

    def splits(self) -> tuple[str, ...]:
        """`training` and `validation`, those that are there; both have to be, unless counts may differ."""
        present = set(self._found_splits())
        missing = [split for split in COUNTS if split not in present]
        if missing and not (self.allow_count_mismatch and present):
            raise SourceError(
                f"{self.root}: no images/{missing[0]}; found {', '.join(sorted(present))}. Name the splits "
                "with"
                " --splits, or pass --allow-count-mismatch if this copy is meant to be partial"
            )
        return tuple(split for split in COUNTS if split in present) or tuple(sorted(present))

    def listing(self, split: str) -> Listing:
        """The pairs of the split, as many as the release has."""
        found = super().listing(split)
        expected = COUNTS.get(split)
        if not self.allow_count_mismatch and len(found.names) != expected:
            first = f" The first file without a partner: {found.rejects[0]}." if found.rejects else ""
            raise SourceError(
                f"{self.root}, split {split!r}: {len(found.names)} pairs of image and label map, but "
                "ADE20K has"
                f" {expected or 'no such split'}.{first} Unpack the release again, or pass "
                "--allow-count-mismatch"
            )
        return found

    def facts(self, item: SourceItem) -> dict[str, Any]:
        """The scene category, where the release's table is there and knows the image."""
        scene = scene_categories(self.root).get(Path(item.image_path).stem)
        return {"scene": scene} if scene else {}


def open_ade20k(root: Path, classes: tuple[str, ...] | None, allow_count_mismatch: bool) -> Ade20kSource:
    """The release at `root`, with `classes`, else its own table of names, else the list in configs/."""
    if classes is None:
        table = root / CLASS_TABLE
        classes = read_object_info(table) if table.is_file() else ade20k_classes()
    rule = LabelRule(len(classes), ignore_index=None, reduce_zero_label=True)
    palette = ade20k_palette() if classes == ade20k_classes() else None
    return Ade20kSource(root, classes, rule, palette=palette, allow_count_mismatch=allow_count_mismatch)


@lru_cache(maxsize=4)
def scene_categories(root: Path) -> Mapping[str, str]:
    """Image stem -> scene category from sceneCategories.txt, two words a line; empty without that file."""
    path = root / SCENE_TABLE
    if not path.is_file():
        return {}
    pairs = {}
    for number, line in enumerate(list_lines(path, "table", "the release's sceneCategories.txt"), start=1):
        words = line.split()
        if len(words) != 2:
            raise SourceError(
                f"{path}, line {number}: expected an image name and a scene category, found {line[:80]!r}"
            )
        pairs[words[0]] = words[1]
    return pairs
