"""From the words of the command line, or of a manifest, to an open source."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from maskshards.preprocess.errors import SourceError
from maskshards.preprocess.inputs.classes import read_classes
from maskshards.preprocess.inputs.labels import LabelRule, read_mapping
from maskshards.preprocess.sources.ade20k import Ade20kSource, open_ade20k
from maskshards.preprocess.sources.folder import FolderSource, find_labels_folder
from maskshards.preprocess.sources.huggingface import HuggingFaceSource, open_hugging_face
from maskshards.preprocess.sources.source import Source

KINDS = ("ade20k", "folder", "hf:NAME")
HUGGING_FACE = "hf:"
LAYOUT = ("images_folder", "labels_folder", "image_ending", "label_ending")
COLUMNS = ("image_column", "label_column")
NOT_FOR = {
    "ade20k": (*LAYOUT, *COLUMNS, "mapping", "ignore_index"),
    "folder": (*COLUMNS, "allow_count_mismatch"),
    HUGGING_FACE: (*LAYOUT, "root", "allow_count_mismatch"),
}


@dataclass(frozen=True, slots=True)
class SourceRequest:
    """What the user said about the source; None and '' = not said."""

    kind: str
    root: Path | None
    classes: Path | None = None
    mapping: Path | None = None
    ignore_index: int | None = None
    reduce_zero_label: bool | None = None
    allow_count_mismatch: bool = False
    name: str = ""
    images_folder: str = ""
    labels_folder: str = ""
    image_ending: str = ""
    label_ending: str = ""
    image_column: str = ""
    label_column: str = ""


def open_source(request: SourceRequest) -> Source:
    """The source that the user asked for. SourceError where words are missing or do not fit its kind."""
    if not request.kind.startswith(HUGGING_FACE) and request.kind not in NOT_FOR:
        raise SourceError(f"--dataset {request.kind}: unknown; known are {', '.join(KINDS)}")
    _check_words(request)
    if request.kind.startswith(HUGGING_FACE):
        return _open_hugging_face(request)
    if request.root is None:
        raise SourceError(f"--dataset {request.kind} needs --root FOLDER, the one that holds images/")
    if not request.root.is_dir():
        raise SourceError(f"--root {request.root}: there is no such folder")
    return (_open_ade20k if request.kind == "ade20k" else _open_folder)(request, request.root)


def reopen_source(
    settings: dict[str, Any], dataset: str, classes: tuple[str, ...], rule: LabelRule, root: str
) -> Source:
    """The source that a manifest describes, now at `root`, whatever its counts: it is to be compared."""
    words = dict(settings)
    kind = words.pop("kind")
    if kind == "hf":
        return HuggingFaceSource(root.removeprefix(HUGGING_FACE), classes, rule, dataset, **words)
    folder = Path(root)
    if not folder.is_dir():
        raise SourceError(f"--against {root}: there is no such folder")
    if kind == "ade20k":
        return Ade20kSource(folder, classes, rule, dataset=dataset, allow_count_mismatch=True, **words)
    if kind == "folder":
        return FolderSource(folder, classes, rule, dataset=dataset, **words)
    raise SourceError(f"the manifest names a source of kind {kind!r}; known are {', '.join(KINDS)}")


def _open_ade20k(request: SourceRequest, root: Path) -> Source:
    if request.reduce_zero_label is False:
        raise SourceError(_misplaced("--no-reduce-zero-label", request))
    classes = read_classes(request.classes) if request.classes else None
    source = open_ade20k(root, classes, request.allow_count_mismatch)
    return replace(source, dataset=request.name) if request.name else source


def _check_words(request: SourceRequest) -> None:
    """SourceError for a word that this kind of source would ignore."""
    kind = HUGGING_FACE if request.kind.startswith(HUGGING_FACE) else request.kind
    for name in NOT_FOR[kind]:
        value = getattr(request, name)
        if value is not None and value is not False and value != "":
            raise SourceError(_misplaced(f"--{name.replace('_', '-')}", request))


def _misplaced(word: str, request: SourceRequest) -> str:
    hint = ", whose labels are fixed; use --dataset folder" if request.kind == "ade20k" else ""
    return f"{word} does not go with --dataset {request.kind}{hint}"


def _classes_and_rule(request: SourceRequest) -> tuple[tuple[str, ...], LabelRule]:
    if request.classes is None:
        raise SourceError(
            f"--dataset {request.kind} needs --classes FILE, a text file with one class name a line,"
            " in the order of the ids"
        )
    classes = read_classes(request.classes)
    if request.mapping is not None:
        if request.ignore_index is not None or request.reduce_zero_label is not None:
            raise SourceError(
                "--mapping says what every value means;"
                " --ignore-index and --reduce-zero-label do not go with it"
            )
        return classes, read_mapping(request.mapping, len(classes))
    void = 255 if request.ignore_index is None else request.ignore_index
    return classes, LabelRule(len(classes), void, bool(request.reduce_zero_label))


def _open_hugging_face(request: SourceRequest) -> Source:
    name, columns = request.kind.removeprefix(HUGGING_FACE), (request.image_column, request.label_column)
    return open_hugging_face(name, *_classes_and_rule(request), request.name, *columns)


def _open_folder(request: SourceRequest, root: Path) -> Source:
    classes, rule = _classes_and_rule(request)
    return FolderSource(
        root,
        classes,
        rule,
        dataset=request.name or "folder",
        images_folder=request.images_folder or "images",
        labels_folder=request.labels_folder or find_labels_folder(root),
        image_ending=request.image_ending,
        label_ending=request.label_ending or ".png",
    )
