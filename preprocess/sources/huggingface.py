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
from maskshards.preprocess.inputs.colours import ColourTable
from maskshards.preprocess.inputs.labels import LabelRule
from maskshards.preprocess.inputs.source_files import MOST_BYTES
from maskshards.preprocess.sources.source import Listing, RawSample, Source, SourceItem
from maskshards.shards.format.record import escape_key
from maskshards.shards.storage.foreign_file import (
    MOST_TEXT_BYTES,
    ForeignFileError,
    open_regular,
    read_bytes,
    why_unreadable,
)

DESCRIPTIONS = ("dataset_dict.json", "dataset_info.json", "state.json")
SAVED = ("dataset_dict.json", "state.json")  # what save_to_disk leaves of several splits, and of one
RANDOM_ACCESS = b"ARROW1"  # how Arrow files begin that are no streams
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
    config: str = ""  # of a data set that has several
    colours: ColourTable | None = None  # of label maps that show each class in a colour
    palette: tuple[tuple[int, int, int], ...] | None = None
    kind: str = "hf"

    def splits(self) -> tuple[str, ...]:
        """The data set's own splits, in its own order; those without labels are named by `left_out`."""
        rows = open_rows(self.name, self.config)
        labelled = tuple(split for split in rows if not _unlabelled(rows[split], self.label_column))
        return labelled or tuple(rows)

    def left_out(self) -> tuple[str, ...]:
        """One line for each split without a label map."""
        kept = self.splits()
        return tuple(
            f"{split}: column {self.label_column!r} is empty, so this split is passed over"
            for split in open_rows(self.name, self.config)
            if split not in kept
        )

    def listing(self, split: str) -> Listing:
        """One name a row: its number, padded so that names sort like numbers."""
        rows = open_rows(self.name, self.config)
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
        row = open_rows(self.name, self.config)[item.split][number]
        image, label = (_stored(row[column], column) for column in (self.image_column, self.label_column))
        if self.colours is not None:
            return RawSample(image, self.colours.values(label), self.colours.facts(label))
        return RawSample(image, label)

    def stamp(self, item: SourceItem) -> str:
        """Rows have no time of change of their own."""
        return ""

    def settings(self) -> dict[str, Any]:
        """The columns; the name is given anew, as the root of a folder is."""
        facts = {"kind": self.kind, "image_column": self.image_column, "label_column": self.label_column}
        more: dict[str, Any] = {"config": self.config} if self.config else {}
        return {**facts, **more, **({"colours": self.colours.to_json()} if self.colours else {})}


def open_hugging_face(
    name: str,
    classes: tuple[str, ...],
    rule: LabelRule,
    colours: ColourTable | None,
    dataset: str,
    image_column: str,
    label_column: str,
    config: str,
) -> HuggingFaceSource:
    """The data set of that name; columns that are not named are found by their usual names."""
    name = str(Path(name).expanduser()) if name.startswith("~") else name
    features = next(iter(open_rows(name, config).values())).features
    image = _column(name, features, image_column, IMAGE_COLUMNS, "--image-column")
    label = _column(name, features, label_column, LABEL_COLUMNS, "--label-column")
    palette = colours.palette() if colours else None
    return HuggingFaceSource(
        name, classes, rule, dataset or Path(name).name, image, label, config, colours, palette
    )


@lru_cache(maxsize=2)
def open_rows(name: str, config: str = "") -> dict[str, Any]:
    """Split -> rows, image columns left encoded. SourceError where it cannot be had."""
    try:
        import datasets
    except ImportError as error:
        raise SourceError("--dataset hf:... needs the extra: pip install 'maskshards[hf]'") from error
    try:
        _check_files(Path(name))
        if any((Path(name) / mark).is_file() for mark in SAVED):
            found = datasets.load_from_disk(name)
        else:
            found = datasets.load_dataset(name, config or None)
    except MemoryError:
        raise
    except Exception as error:  # its readers take files for what their names say, and stumble over anything
        hint = "; choose one: --config NAME" if not config and "onfig name is missing" in str(error) else ""
        reason = str(error)[:400] if isinstance(error, OSError | ValueError) else f"{error!r:.400}"
        raise SourceError(f"hf:{name} cannot be opened: {reason}{hint}") from error
    if isinstance(found, datasets.Dataset):  # one split by itself, as Dataset.save_to_disk leaves it
        found = {str(found.split or "train"): found}
    if not found:
        raise SourceError(f"hf:{name} has no split; is it whole? Download or save it again")
    return {split: _encoded(rows, datasets.Image) for split, rows in found.items()}


def _check_files(folder: Path) -> None:
    """ForeignFileError for what is no file in a local folder, or a description too long to be one.

    The library opens whatever has the name, and waits for a pipe.
    """
    for path in sorted(folder.rglob("*")) if folder.is_dir() else ():
        if path.exists() and not path.is_dir():
            open_regular(path, MOST_TEXT_BYTES if path.name in DESCRIPTIONS else None).close()
            if path.suffix == ".arrow":
                _check_arrow(path)


def _check_arrow(path: Path) -> None:
    """ForeignFileError where offsets lead out of the file: whoever follows them crashes, with the process.

    Only offsets and texts are read, no images.
    """
    import pyarrow  # with all that needs it

    try:
        with pyarrow.memory_map(str(path)) as file:
            if file.read(len(RANDOM_ACCESS)) == RANDOM_ACCESS:
                opened = pyarrow.ipc.open_file(file)
                batches = (opened.get_batch(number) for number in range(opened.num_record_batches))
            else:
                file.seek(0)
                batches = iter(pyarrow.ipc.open_stream(file))
            for batch in batches:
                batch.validate(full=True)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise ForeignFileError(f"{path} is damaged ({error}); fetch it or save it again") from error


def _unlabelled(rows: Any, column: str) -> bool:
    """Whether no row of a split has a label map, as test splits of benchmarks are published."""
    if column not in rows.column_names:
        return True
    import pyarrow.types  # only this kind of source needs it before the end

    cells = rows.data.column(column)
    if pyarrow.types.is_struct(cells.type):
        parts = cells.combine_chunks().flatten() if len(cells) else []
        return all(part.null_count == len(part) for part in parts)
    return bool(cells.null_count == len(cells))


def _encoded(rows: Any, image_type: Any) -> Any:
    for column, kind in rows.features.items():
        if isinstance(kind, image_type):
            rows = rows.cast_column(column, image_type(decode=False))
    return rows


def _column(name: str, features: Any, wanted: str, usual: tuple[str, ...], option: str) -> str:
    """The named column, else the first usual one, of those that hold images where some do."""
    columns = list(features)
    found = [column for column in ((wanted,) if wanted else usual) if column in columns]
    images = [column for column in found if type(features[column]).__name__ == "Image"]
    found = images or found
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
            return read_bytes(value["path"], MOST_BYTES)
        except OSError as error:
            raise RejectedInput(
                f"column {column!r}: {value['path']} cannot be read: {why_unreadable(error)}"
            ) from error
    raise RejectedInput(f"column {column!r} holds no image file but {type(value).__name__}")
