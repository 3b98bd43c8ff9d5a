"""Label maps that show each class in a colour of its own, and the table of those colours.

The table is text: a class and its red, green and blue on each line (`road,128,64,128`), with or without a
header, or what CamVid (`128 64 128 road`), CVAT (`road:128,64,128::`) and Supervisely (JSON) put beside their
label maps. Several colours may stand for one class; `void` in the place of the class marks pixels of none.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from maskshards.preprocess.errors import RejectedInput, SourceError
from maskshards.preprocess.inputs.label_file import npy_bytes
from maskshards.preprocess.inputs.labels import LabelRule
from maskshards.preprocess.inputs.pillow import opened
from maskshards.preprocess.inputs.png import PALETTE, SIGNATURE, check_whole, read_header
from maskshards.preprocess.inputs.source_files import list_lines

VOID_NAMES = ("void", "ignore", "unlabelled", "unlabeled")
FORMATS = ("PNG", "TIFF", "BMP", "GIF")  # without loss
TIFF_BITS = 258  # tag: bits of each channel
SHOWN = 5
MOST_LINES = 1 << 20  # of a table
RED, GREEN, BLUE, GAP = r"(?P<r>\d{1,3})", r"(?P<g>\d{1,3})", r"(?P<b>\d{1,3})", r"(?>\s*[,;\t])\s*+"
ROWS = (  # none of them may cost the square of a line's length
    re.compile(rf"(?P<name>[^,;\t]++){GAP}{RED}{GAP}{GREEN}{GAP}{BLUE}"),
    re.compile(rf"(?P<name>[^,;\t]+):{RED},{GREEN},{BLUE}:[^:]*:.*"),  # labelmap.txt of CVAT
    re.compile(rf"{RED}\s+{GREEN}\s+{BLUE}\s+(?P<name>\S.*)"),  # CamVid's own
)
Color = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class ColourTable:
    """Which class a colour stands for."""

    entries: tuple[tuple[Color, int | None], ...]  # RGB 0..255 -> class id, None for void
    num_classes: int

    @property
    def void(self) -> int:
        """The value of void pixels in `values`."""
        return 255 if self.num_classes <= 255 else 65535

    def rule(self) -> LabelRule:
        """What `values` means."""
        return LabelRule(self.num_classes, self.void)

    def to_json(self) -> list[list[Any]]:
        """The table as it stands in the manifest."""
        return [[*colour, label] for colour, label in self.entries]

    @classmethod
    def from_json(cls, rows: list[list[Any]], num_classes: int) -> ColourTable:
        """The inverse of `to_json`."""
        return cls(tuple(((red, green, blue), label) for red, green, blue, label in rows), num_classes)

    def palette(self) -> tuple[Color, ...] | None:
        """The first colour of each class; None where a class has none."""
        first = {label: colour for colour, label in reversed(self.entries) if label is not None}
        known = set(first) == set(range(self.num_classes))
        return tuple(first[label] for label in range(self.num_classes)) if known else None

    def facts(self, data: bytes) -> dict[str, Any]:
        """The digest of the file as the source has it, for the record."""
        return {"label_sha256": hashlib.sha256(data).hexdigest()}

    def values(self, data: bytes) -> bytes:
        """The class ids in a coloured label file, as an NPY file; RejectedInput for other colours."""
        colours = _decode(data)
        packed = (colours[..., 0].astype(np.uint32) << 16) | (colours[..., 1].astype(np.uint32) << 8)
        packed |= colours[..., 2]
        keys = np.array([(red << 16) | (green << 8) | blue for (red, green, blue), _ in self.entries])
        labels = np.array([self.void if label is None else label for _, label in self.entries])
        order = np.argsort(keys)
        places = np.searchsorted(keys[order], packed).clip(max=len(keys) - 1)
        unknown = keys[order][places] != packed
        if unknown.any():
            raise RejectedInput(_unknown(packed[unknown], len(keys)))
        kind = np.uint8 if self.void == 255 else np.uint16
        return npy_bytes(labels[order].astype(kind)[places])


def read_colours(path: Path, classes: tuple[str, ...] | None) -> tuple[tuple[str, ...], ColourTable]:
    """The class names and the table in a file.

    Names come from `classes` where those are given, else from the file, in its order. SourceError names the
    line that is wrong.
    """
    lines = list_lines(path, "colour table", "lines such as road,128,64,128", MOST_LINES)
    if next(filter(None, map(str.strip, lines)), "").startswith("{"):
        lines = _lines_of_json("\n".join(lines), path)
    rows = [(number, *_row(line, f"{path}, line {number}", number)) for number, line in enumerate(lines, 1)]
    kept = [(number, name, colour) for number, name, colour in rows if colour is not None]
    names = list(dict.fromkeys(name for _, name, _ in kept if name.lower() not in VOID_NAMES))
    numbered = classes is not None and not set(names) <= set(classes)
    known = {name: label for label, name in enumerate(classes or names)}
    entries: dict[Color, int | None] = {}
    for number, name, colour in kept:
        if colour in entries:
            raise SourceError(f"{path}, line {number}: colour {colour} stands twice")
        void = name.lower() in VOID_NAMES and name not in known
        label = None if void else known.get(name)
        if label is None and not void and numbered and name.isdecimal() and int(name) < len(known):
            label = int(name)
        if label is None and not void:
            raise SourceError(f"{path}, line {number}: {name!r} is no class of the list, nor 'void'")
        entries[colour] = label
    if not entries or not known:
        raise SourceError(f"{path}: no colours in it; expected lines such as road,128,64,128")
    return classes or tuple(names), ColourTable(tuple(entries.items()), len(known))


def _lines_of_json(text: str, path: Path) -> list[str]:
    """The lines of a table like Supervisely's obj_class_to_machine_color.json: {"road": [128, 64, 128]}."""
    try:
        return [f"{name},{red},{green},{blue}" for name, (red, green, blue) in json.loads(text).items()]
    except (ValueError, TypeError, RecursionError) as error:
        raise SourceError(f"{path}: expected JSON such as {{'road': [128, 64, 128]}} ({error})") from error


def _row(line: str, place: str, number: int) -> tuple[str, Color | None]:
    """Class and colour of one line; no colour for an empty line, a comment, or a header."""
    text = line.strip()
    if not text or text.startswith("#"):
        return "", None
    if match := next((found for row in ROWS if (found := row.fullmatch(text))), None):
        red, green, blue = (int(match[channel]) for channel in "rgb")
        if max(red, green, blue) <= 255:
            return match["name"].strip(), (red, green, blue)
    if number == 1 and not re.search(r"\d", text) and len(re.split(r"[,;\t]", text)) >= 4:
        return "", None
    raise SourceError(f"{place}: expected class,r,g,b such as road,128,64,128, found {text[:80]!r}")


def _decode(data: bytes) -> np.ndarray:
    """(H, W, 3) uint8 of a coloured label file."""
    if data[:8] == SIGNATURE and read_header(data).bit_depth == 16:
        raise RejectedInput(f"label map is a {read_header(data)}; colours have 8 bits a channel")
    if data[:2] == b"\xff\xd8":
        raise RejectedInput("label map is a JPEG, whose colours are smeared at borders; save it as PNG")
    try:
        if data[:8] == SIGNATURE:
            check_whole(data)
        with opened(data, FORMATS) as image:
            bits = max(np.atleast_1d(getattr(image, "tag_v2", {}).get(TIFF_BITS, 8)))
            if bits > 8:  # Pillow would keep the high byte
                raise RejectedInput(f"a TIFF of {bits} bits a channel; colours have 8")
            if image.mode in ("RGBA", "LA", "PA") and image.getchannel("A").getextrema()[0] != 255:
                raise RejectedInput("transparent pixels have no colour; save it without alpha")
            if image.mode not in ("RGB", "RGBA", "P", "L", "1", "LA", "PA"):
                raise RejectedInput(f"{image.mode} pixels have no colour; save it as 8-bit RGB")
            return np.asarray(image.convert("RGB"))
    except RejectedInput as error:
        raise RejectedInput(f"label map: {error}") from error


def palette_conflict(files: Iterable[tuple[str, bytes]]) -> str:
    """What to say of label files, by path, whose palettes give one colour two indices; '' where none do.

    Programs that reduce colours number them anew in each file, so that an index means nothing.
    """
    seen: dict[Color, tuple[int, str]] = {}
    for path, data in files:
        for index, colour in _used_palette(data):
            first, where = seen.setdefault(colour, (index, path))
            if first != index:
                return (
                    f"palettes disagree: colour {colour} is index {first} in {where} and {index} in {path}."
                    " Indices are taken as label values; if the colours tell the classes: --colours FILE"
                )
    return ""


def _used_palette(data: bytes) -> list[tuple[int, Color]]:
    """Index and colour of the pixels of a palette PNG, of colours that its palette has once."""
    if data[:8] != SIGNATURE or read_header(data).colour != PALETTE:
        return []
    with opened(data, ("PNG",)) as image:
        flat = image.getpalette() or []
        used = np.unique(np.asarray(image)).tolist()
    colours = [(flat[at], flat[at + 1], flat[at + 2]) for at in range(0, len(flat) - 2, 3)]
    return [(i, colours[i]) for i in used if i < len(colours) and colours.count(colours[i]) == 1]


def _unknown(packed: np.ndarray, known: int) -> str:
    found, counts = np.unique(packed, return_counts=True)
    most = np.argsort(-counts)[:SHOWN]
    shown = ", ".join(f"{tuple(int(found[i]) >> shift & 255 for shift in (16, 8, 0))}" for i in most)
    more = ", ..." if len(found) > SHOWN else ""
    return (
        f"colours that the table does not have: {shown}{more} ({len(packed)} pixels);"
        f" expected one of its {known}"
    )
