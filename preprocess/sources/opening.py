"""From the words of the command line, or of a manifest, to an open source."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from maskshards.preprocess.errors import SourceError
from maskshards.preprocess.inputs.classes import read_classes
from maskshards.preprocess.inputs.colours import ColourTable, read_colours
from maskshards.preprocess.inputs.labels import LabelRule, choose_rule, read_mapping
from maskshards.preprocess.sources.ade20k import Ade20kSource, open_ade20k
from maskshards.preprocess.sources.cityscapes import CityscapesSource, open_cityscapes
from maskshards.preprocess.sources.coco import CocoSource, open_coco
from maskshards.preprocess.sources.coco_stuff import open_coco_stuff
from maskshards.preprocess.sources.folder import FolderSource
from maskshards.preprocess.sources.folder_pattern import find_images_folder, find_labels_folder
from maskshards.preprocess.sources.huggingface import HuggingFaceSource, open_hugging_face
from maskshards.preprocess.sources.mapillary import open_mapillary
from maskshards.preprocess.sources.source import Source
from maskshards.preprocess.sources.voc import OWN_CLASSES, OWN_COLOURS, VocLabels, open_voc, own_table

HUGGING_FACE = "hf:"
NO_VOID = -1  # what `ignore_index` is where no value is void
RULE = ("classes", "mapping", "ignore_index", "reduce_zero_label", "colours")
LAYOUT = ("images_folder", "labels_folder", "image_ending", "label_ending")
TAKES = {  # kind -> the words of a request that it knows, besides those that every kind knows
    "ade20k": ("root", "classes", "reduce_zero_label", "allow_count_mismatch"),
    "cityscapes": ("root",),
    "coco": ("root", "annotations", "segments", "background"),
    "coco-stuff": ("root", "reduce_zero_label"),
    "folder": ("root", *RULE, *LAYOUT, "lists", "val_share"),
    "mapillary": ("root", "labels_folder"),
    "voc": ("root", *RULE, *LAYOUT[1:], "lists", "val_share"),
    HUGGING_FACE: (*RULE, "image_column", "label_column", "config"),
}


@dataclass(frozen=True, slots=True)
class SourceRequest:
    """What the user said about the source; None, 0.0 and '' = not said."""

    kind: str
    root: Path | None
    classes: Path | None = None
    mapping: str | Path = ""  # JSON, or a file that holds it
    colours: Path | None = None
    ignore_index: int | None = None  # or NO_VOID
    reduce_zero_label: bool | None = None
    allow_count_mismatch: bool = False
    name: str = ""
    images_folder: str = ""
    labels_folder: str = ""
    image_ending: str = ""
    label_ending: str = ""
    lists: Path | None = None
    val_share: float = 0.0
    image_column: str = ""
    label_column: str = ""
    config: str = ""
    annotations: str = ""
    segments: str = ""
    background: bool = False


def open_source(request: SourceRequest) -> Source:
    """The source that the user asked for. SourceError where words are missing or do not fit its kind."""
    kind = _kind(request)
    if kind not in TAKES:
        known = ", ".join(f"{name}NAME" if name == HUGGING_FACE else name for name in TAKES)
        raise SourceError(f"--dataset {request.kind}: unknown; known are {known}")
    _check_words(request)
    if kind == HUGGING_FACE:
        return _open_hugging_face(request)
    if request.root is None:
        raise SourceError(f"--dataset {kind} needs --root FOLDER, the one that the data set was unpacked to")
    if not request.root.is_dir():
        found = "it is a file; unpack it first" if request.root.is_file() else "there is no such folder"
        raise SourceError(f"--root {request.root}: {found}")
    source = OPENERS[kind](request, request.root)
    return replace(source, dataset=request.name) if request.name else source  # type: ignore[type-var]


def void_is_said(request: SourceRequest) -> bool:
    """Whether the user, or the kind of data set, says which value is void; else it is a default."""
    fixed = "ignore_index" not in TAKES[_kind(request)] or request.colours is not None
    return fixed or request.ignore_index is not None


def reopen_source(
    settings: dict[str, Any], dataset: str, classes: tuple[str, ...], rule: LabelRule, root: str
) -> Source:
    """The source that a manifest describes, now at `root`, whatever its counts: it is to be compared."""
    words = dict(settings)
    kind = words.pop("kind")
    if "colours" in words:
        words["colours"] = ColourTable.from_json(words["colours"], len(classes))
    if kind == "hf":
        name = str(Path(root.removeprefix(HUGGING_FACE)).expanduser())
        return HuggingFaceSource(name, classes, rule, dataset, **words)
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise SourceError(f"--against {root}: there is no such folder")
    if kind not in SOURCES:
        raise SourceError(f"the manifest names a source of kind {kind!r}; known are {', '.join(SOURCES)}")
    words |= {name: tuple(value) for name, value in words.items() if name in ("files", "categories")}
    return SOURCES[kind](folder, classes, rule, dataset=dataset, kind=kind, **words)


def _kind(request: SourceRequest) -> str:
    return HUGGING_FACE if request.kind.startswith(HUGGING_FACE) else request.kind


def _open_ade20k(request: SourceRequest, root: Path) -> Source:
    if request.reduce_zero_label is False:
        raise SourceError(_misplaced("--no-reduce-zero-label", request))
    classes = read_classes(request.classes, first_number=1) if request.classes else None
    return open_ade20k(root, classes, request.allow_count_mismatch)


def _check_words(request: SourceRequest) -> None:
    """SourceError for a word that this kind of source would ignore."""
    kind = _kind(request)
    known = ("kind", "name", *TAKES[kind])
    names = sorted((field.name for field in fields(request)), key=lambda name: name == "root")
    for name in (name for name in names if name not in known):
        value = getattr(request, name)
        unsaid = value is None or value is False or (type(value) is not int and value in ("", 0.0))
        if not unsaid:
            raise SourceError(_misplaced(f"--{name.replace('_', '-')}", request))
    if (request.colours or request.mapping) and (
        request.ignore_index is not None or request.reduce_zero_label is not None
    ):
        raise SourceError(
            f"{'--colours' if request.colours else '--mapping'} says what every value means;"
            " --ignore-index and --reduce-zero-label do not go with it"
        )
    if request.colours and request.mapping:
        raise SourceError("--colours and --mapping each say what every value means; give one of them")


def _misplaced(word: str, request: SourceRequest) -> str:
    fixed = request.kind != "folder" and not request.kind.startswith(HUGGING_FACE)
    hint = ", whose labels are fixed; use --dataset folder" if fixed else ""
    return f"{word} does not go with --dataset {request.kind}{hint}"


def _labels_of(request: SourceRequest) -> tuple[tuple[str, ...], LabelRule, ColourTable | None]:
    """Class names, the rule, and the colours where label maps have such."""
    first = 1 if request.reduce_zero_label else 0
    classes = read_classes(request.classes, first) if request.classes else None
    if request.colours is not None:
        names, colours = read_colours(request.colours, classes)
        return names, colours.rule(), colours
    if classes is None:
        raise SourceError(
            f"--dataset {request.kind} needs --classes FILE, a text file with one class name a line,"
            " in the order of the ids"
        )
    if request.mapping:
        return classes, read_mapping(request.mapping, len(classes)), None
    no_void = request.ignore_index == NO_VOID
    return (
        classes,
        choose_rule(classes, request.ignore_index, bool(request.reduce_zero_label), no_void),
        None,
    )


def _open_hugging_face(request: SourceRequest) -> Source:
    name, columns = request.kind.removeprefix(HUGGING_FACE), (request.image_column, request.label_column)
    return open_hugging_face(name, *_labels_of(request), request.name, *columns, request.config)


def _open_folder(request: SourceRequest, root: Path) -> Source:
    classes, rule, colours = _labels_of(request)
    lists = _checked_lists(request, root)
    flat = bool(request.val_share or lists)
    images = request.images_folder or ("images" if flat else find_images_folder(root))
    return FolderSource(
        root,
        classes,
        rule,
        dataset=request.name or "folder",
        images_folder=images,
        labels_folder=request.labels_folder or find_labels_folder(root),
        image_ending=_dotted(request.image_ending),
        label_ending=_dotted(request.label_ending) or ".png",
        lists=lists,
        val_share=request.val_share,
        colours=colours,
        palette=colours.palette() if colours else None,
    )


def _open_voc(request: SourceRequest, root: Path) -> Source:
    """The release, or a data set of one's own, whose classes are said, or stand in a table beside it."""
    if not (request.classes or request.colours):
        colours = own_table(root, OWN_COLOURS)
        classes = None if colours else own_table(root, OWN_CLASSES)
        request = replace(request, colours=colours, classes=classes)
    said = any(getattr(request, word) not in (None, "") for word in RULE)
    own = VocLabels(*_labels_of(request)) if said else None
    endings = _dotted(request.image_ending), _dotted(request.label_ending)
    lists = _checked_lists(request, root)
    return open_voc(root, request.labels_folder, own, lists, request.val_share, endings)


def _checked_lists(request: SourceRequest, root: Path) -> str:
    """The folder of lists, '' without one. SourceError where splits are said twice, or by no share."""
    if not 0.0 <= request.val_share < 1.0:
        raise SourceError(f"--val-share is {request.val_share}; expected a share such as 0.1")
    if request.val_share and request.lists:
        raise SourceError("--lists and --val-share both say which image is in which split; give one of them")
    return _lists_of(request.lists, root) if request.lists else ""


def _dotted(ending: str) -> str:
    """`png` means `.png`."""
    return f".{ending}" if ending.isalnum() else ending


def _lists_of(lists: Path, root: Path) -> str:
    """As it stands in the manifest: below the root where it is, so that the root may move."""
    if not lists.is_absolute() and (root / lists).is_dir():
        return lists.as_posix()
    whole = lists.resolve()
    inside = whole.is_relative_to(root.resolve())
    return (whole.relative_to(root.resolve()) if inside else whole).as_posix()


OPENERS: dict[str, Callable[[SourceRequest, Path], Source]] = {
    "ade20k": _open_ade20k,
    "cityscapes": lambda request, root: open_cityscapes(root),
    "coco": lambda asked, root: open_coco(root, asked.annotations, asked.segments, asked.background),
    "coco-stuff": lambda asked, root: open_coco_stuff(root, bool(asked.reduce_zero_label)),
    "folder": _open_folder,
    "mapillary": lambda request, root: open_mapillary(root, request.labels_folder),
    "voc": _open_voc,
}
SOURCES: dict[str, Callable[..., Source]] = {
    "ade20k": partial(Ade20kSource, allow_count_mismatch=True),
    "cityscapes": CityscapesSource,
    "coco": CocoSource,
    **dict.fromkeys(("coco-stuff", "folder", "mapillary", "voc"), FolderSource),
}
