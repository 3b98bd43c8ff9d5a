"""A Hugging Face data set with an image column and a label-map column (extra `hf`).

`hf:NAME` is a data set of the hub, `hf:FOLDER` a local one (parquet or arrow files, as `save_to_disk` or the
hub lay them out). The stored bytes of both columns are taken as they are, never decoded and encoded again; a
row is named by its number.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from maskshards.preprocess.errors import RejectedInput, SourceError
from maskshards.preprocess.inputs.labels import LabelRule
from maskshards.preprocess.sources.source import Listing, RawSample, Source, SourceItem
from maskshards.shards.format.record import escape_key

IMAGE_COLUMNS = ("image", "pixel_values", "img")
LABEL_COLUMNS = ("annotation", "label", "labels", "mask", "segmentation_mask", "semantic_mask", "label_map")


@dataclass(frozen=True)
class HuggingFaceSource(Source):
    """Rows of a `datasets.DatasetDict`, opened anew in each process and kept open there."""

    name: str  # of the hub, or a local folder
    classes: tuple[str, ...]
    label_rule: LabelRule
    dataset: str
    image_column: str
    label_column: str
    kind: str = "hf"

    def splits(self) -> tuple[str, ...]:
        """The data set's own splits, in its own order."""
        return tuple(open_rows(self.name))

    def listing(self, split: str) -> Listing:
        """One name a row: its number, padded so that names sort like numbers."""
        rows = open_rows(self.name)
        if split not in rows:
            raise SourceError(f"hf:{self.name}: no split {split!r}; it has {', '.join(rows)}")
        return Listing(tuple(f"{row:09d}" for row in range(len(rows[split]))), ())

    def item(self, split: str, name: str) -> SourceItem:
        """The row of that number."""
        key = escape_key(f"{split}_{name}")
        return SourceItem(
            key, f"{split}[{name}].{self.image_column}", f"{split}[{name}].{self.label_column}", split
        )

    def read(self, item: SourceItem) -> RawSample:
        """The stored bytes of both columns."""
        number = int(item.image_path.partition("[")[2].partition("]")[0])
        row = open_rows(self.name)[item.split][number]
        image, label = (_stored(row[column], column) for column in (self.image_column, self.label_column))
        return RawSample(image, label)

    def stamp(self, item: SourceItem) -> str:
        """Rows have no time of change of their own."""
        return ""

    def settings(self) -> dict[str, Any]:
        """The columns; the name is given anew, as the root of a folder is."""
        return {"kind": self.kind, "image_column": self.image_column, "label_column": self.label_column}


def open_hugging_face(
    name: str, classes: tuple[str, ...], rule: LabelRule, dataset: str, image_column: str, label_column: str
) -> HuggingFaceSource:
    """The data set of that name; columns that are not named are found by their usual names."""
    rows = open_rows(name)
    columns = next(iter(rows.values())).column_names
    image = _column(name, columns, image_column, IMAGE_COLUMNS, "--image-column")
    label = _column(name, columns, label_column, LABEL_COLUMNS, "--label-column")
    return HuggingFaceSource(name, classes, rule, dataset or Path(name).name, image, label)


@lru_cache(maxsize=2)
def open_rows(name: str) -> dict[str, Any]:
    """Split -> rows, image columns left encoded. SourceError where it cannot be had."""
    try:
        import datasets
    except ImportError as error:
        raise SourceError("--dataset hf:... needs the extra: pip install 'maskshards[hf]'") from error
    try:
        saved = (Path(name) / "dataset_dict.json").is_file()
        found = datasets.load_from_disk(name) if saved else datasets.load_dataset(name)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise SourceError(f"hf:{name} cannot be opened: {error}") from error
    return {split: _encoded(rows, datasets.Image) for split, rows in found.items()}


def _encoded(rows: Any, image_type: Any) -> Any:
    for column, kind in rows.features.items():
        if isinstance(kind, image_type):
            rows = rows.cast_column(column, image_type(decode=False))
    return rows


def _column(name: str, columns: list[str], wanted: str, usual: tuple[str, ...], option: str) -> str:
    found = [column for column in ((wanted,) if wanted else usual) if column in columns]
    if not found:
        raise SourceError(
            f"hf:{name}: no column {wanted or ' or '.join(usual)}; it has {', '.join(columns)}. Name one: "
            f"{option}"
        )
    return found[0]


def _stored(value: Any, column: str) -> bytes:
    """The bytes of an undecoded image: in the row itself, or in a file beside the data set."""
    if isinstance(value, dict) and value.get("bytes"):
        return bytes(value["bytes"])
    if isinstance(value, dict) and value.get("path"):
        try:
            return Path(value["path"]).read_bytes()
        except OSError as error:
            raise RejectedInput(
                f"column {column!r}: {value['path']} cannot be read: {error.strerror}"
            ) from error
    raise RejectedInput(f"column {column!r} holds no image file but {type(value).__name__}")
