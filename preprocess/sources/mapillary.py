"""Mapillary Vistas, releases 1.2 and 2.0, as unzipped: training/images/ and training/v2.0/labels/.

The release's own configuration names the labels, says which of them are evaluated, and gives their colours;
a label map's value is the label's place in that list. Labels that are not evaluated are void.
"""

from __future__ import annotations

import json
from pathlib import Path

from maskshards.preprocess.errors import SourceError
from maskshards.preprocess.inputs.labels import LabelRule
from maskshards.preprocess.sources.file_listing import found_in
from maskshards.preprocess.sources.folder import FolderSource
from maskshards.preprocess.sources.folder_pattern import FolderPattern
from maskshards.shards.storage.foreign_file import read_text

CONFIGS = {"labels": "config.json", "v2.0/labels": "config_v2.0.json", "v1.2/labels": "config_v1.2.json"}


def open_mapillary(root: Path, labels_folder: str = "") -> FolderSource:
    """The release at `root`; `labels_folder` is v2.0/labels (the default) or v1.2/labels.

    SourceError where label maps or the configuration are missing.
    """
    there = [name for name in ("v2.0/labels", "v1.2/labels", "labels") if _splits(root, name)]
    chosen = labels_folder or next(iter(there), "")
    if chosen not in there:
        raise SourceError(
            f"{root}: no SPLIT/{labels_folder or 'v2.0/labels'} in it;"
            f" found {', '.join(there) or found_in(root)}"
        )
    names, colours, mapping = _read_config(root / CONFIGS[chosen])
    return FolderSource(
        root,
        names,
        LabelRule(len(names), mapping=mapping),
        dataset="mapillary",
        images_folder="{split}/images",
        labels_folder=f"{{split}}/{chosen}",
        image_ending=".jpg",
        kind="mapillary",
        palette=colours,
    )


def _splits(root: Path, labels: str) -> tuple[str, ...]:
    return FolderPattern(f"{{split}}/{labels}").splits(root)


def _read_config(
    path: Path,
) -> tuple[tuple[str, ...], tuple[tuple[int, int, int], ...], tuple[tuple[int, int | None], ...]]:
    """Names and colours of the evaluated labels, and the class of each value."""
    try:
        labels = json.loads(read_text(path))["labels"]
        rows = [(str(e["readable"]), str(e["name"]), bool(e["evaluate"]), e["color"]) for e in labels]
        kept = [row for row in rows if row[2]]
        colours = tuple((red, green, blue) for *_, (red, green, blue) in kept)
        strange = [value for colour in colours for value in colour if type(value) is not int or value >> 8]
        if not kept:
            raise ValueError("none of its labels is evaluated")
        if strange:
            raise ValueError(f"a colour holds {strange[0]!r:.40}, expected 0 to 255")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise SourceError(
            f"{path}: not the release's configuration ({type(error).__name__}: {error}); unzip it again"
        ) from error
    readable = [row[0] for row in kept]
    names = tuple(readable if len(set(readable)) == len(readable) else [row[1] for row in kept])
    classes = {value: label for label, value in enumerate(v for v, row in enumerate(rows) if row[2])}
    return names, colours, tuple((value, classes.get(value)) for value in range(len(rows)))
