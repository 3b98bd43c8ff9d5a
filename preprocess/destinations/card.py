"""What makes a finished set usable elsewhere: `README.md`, a data set card, and `classes.json`.

The Hugging Face hub shows a card as it stands and reads from its head where the splits lie. A card that
somebody wrote to, which its last line tells, is theirs and is left alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np
from jinja2 import Environment, FunctionLoader, StrictUndefined

from maskshards.preprocess.destinations.local import Destination
from maskshards.preprocess.inputs.labels import LabelRule
from maskshards.shards.commands.info import survey
from maskshards.shards.commands.root_files import (
    CARD_NAME,
    CLASSES_NAME,
    card_is_sealed,
    classes_are_ours,
    sealed_card,
    sealed_classes,
)
from maskshards.shards.format.manifest import Manifest, Split
from maskshards.shards.format.rle import IGNORE

HUB_SPLITS = {"training": "train", "val": "validation", "testing": "test"}  # usual names on the hub
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


@dataclass(frozen=True, slots=True)
class _SplitFacts:
    name: str
    facts: dict[str, Any]  # of maskshards.shards.commands.info.survey

    @property
    def hub_name(self) -> str:
        return HUB_SPLITS.get(self.name, re.sub(r"\W", "_", self.name))

    @property
    def labelled(self) -> int:
        return max(1, sum(int(entry["pixels"]) for entry in self.facts["classes"]))


def write_card(place: Destination, splits: Sequence[Split], license_name: str) -> list[str]:
    """Write both files at the root of a data set; what was left alone, in lines."""
    manifests = [split.manifest for split in splits]
    if len({manifest.classes for manifest in manifests}) != 1:
        return [f"{place}: its splits have different classes, so there is no {CARD_NAME} of all of them"]
    left = []
    found = place.read(CLASSES_NAME)
    if found is not None and not classes_are_ours(found):  # such as the source's, built in its place
        left.append(f"{place}/{CLASSES_NAME} is none of ours and is left as it is")
    else:
        place.write(CLASSES_NAME, classes_json(manifests[0]))
    found = place.read(CARD_NAME)
    if found is not None and not card_is_sealed(found):
        return [*left, f"{place}/{CARD_NAME} was changed by hand and is left as it is"]
    place.write(CARD_NAME, card(splits, license_name))
    return left


def classes_json(manifest: Manifest) -> bytes:
    """Ids, names, colours, and the values that meant each class, and void, in the source's label maps."""
    table = LabelRule.from_json(manifest.label_rule).table()
    classes = []
    for number, name in enumerate(manifest.classes):
        entry: dict[str, Any] = {"id": number, "name": name}
        if manifest.palette is not None:
            entry["color"] = list(manifest.palette[number])
        classes.append({**entry, "source_values": np.flatnonzero(table == number).tolist()})
    void = {"id": IGNORE, "source_values": np.flatnonzero(table == IGNORE).tolist()}
    return sealed_classes({"dataset": manifest.dataset, "classes": classes, "void": void})


def card(splits: Sequence[Split], license_name: str) -> bytes:
    """The file README.md: the same for the same content, wherever it lies."""
    described = [_SplitFacts(split.manifest.split, survey(split)) for split in splits]
    total = sum(entry.facts["samples"] for entry in described)
    text = (
        _environment()
        .get_template("README.md.j2")
        .render(
            splits=described,
            dataset=splits[0].manifest.dataset,
            classes=splits[0].manifest.classes,
            license=license_name,
            size_category=next((name for most, name in SIZES if total < most), "n>1M"),
        )
    )
    return sealed_card(text)


def _environment() -> Environment:
    found = Environment(
        loader=FunctionLoader(_template),
        autoescape=False,  # Markdown: names are made harmless by `cell` and `quoted`
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    found.filters.update(cell=_cell, quoted=json.dumps)
    return found


def _template(name: str) -> str:
    place = resources.files("maskshards.preprocess.destinations").joinpath("templates").joinpath(name)
    return place.read_text(encoding="utf-8")


def _cell(text: str) -> str:
    """A name as text in a table of Markdown: no markup, no line of its own."""
    shown = "".join(char if char.isprintable() else " " for char in text)
    return re.sub(r"([\\`*_\[\]|#])", r"\\\1", shown.replace("&", "&amp;").replace("<", "&lt;"))
