"""The HTML of a preview: one file, everything inside it, nothing loaded from elsewhere.

Names and keys come from data that somebody else made, so the template escapes all text, and a content policy
forbids the page to fetch anything. Words and looks stand in `templates/`.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from importlib import resources
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup


@dataclass(frozen=True, slots=True)
class Card:
    """One picture with masks on it."""

    key: str
    height: int  # of the sample, px
    width: int
    classes: tuple[str, ...]
    photo: bytes  # JPEG
    mask: bytes  # PNG with alpha, of the photo's size


@dataclass(frozen=True, slots=True)
class Section:
    """One split."""

    facts: dict[str, Any]  # of maskshards.shards.commands.info.survey
    colours: list[tuple[int, ...]]  # RGB of each class
    mosaic: list[Card]
    examples: list[Card]

    @property
    def present(self) -> list[dict[str, Any]]:
        """The classes with a pixel, commonest first: id, name, images, share of labelled pixels, colour."""
        labelled = max(1, sum(entry["pixels"] for entry in self.facts["classes"]))
        found = [
            {**entry, "share": entry["pixels"] / labelled, "colour": _hex(self.colours[entry["id"]])}
            for entry in self.facts["classes"]
            if entry["pixels"]
        ]
        return sorted(found, key=lambda entry: -entry["share"])

    @property
    def absent(self) -> list[str]:
        """The classes without one. Of a name with synonyms, as ADE20K's are, the first will do."""
        return [f"{c['id']} {c['name'].split(',')[0]}" for c in self.facts["classes"] if not c["pixels"]]


def html_page(sections: list[Section]) -> str:
    """The whole file."""
    names = {
        f"split{number}": {
            ",".join(map(str, colour)): entry["name"]
            for colour, entry in zip(section.colours, section.facts["classes"], strict=True)
        }
        for number, section in enumerate(sections)
    }
    # In a script element only '<' could end it early.
    lookup = Markup(json.dumps(names).replace("<", "\\u003c"))
    page: str = (
        _environment()
        .get_template("preview.html.j2")
        .render(
            title=sections[0].facts["dataset"] if sections else "",
            sections=sections,
            lookup=lookup,
            style=Markup(_text("preview.css")),
            script=Markup(_text("preview.js")),
        )
    )
    return page


def _environment() -> Environment:
    found = Environment(
        loader=FunctionLoader(_text),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    found.filters["base64"] = lambda data: base64.b64encode(data).decode()
    return found


def _text(name: str) -> str:
    """A file of the templates' folder."""
    place = resources.files("maskshards.shards.commands").joinpath("templates").joinpath(name)
    return place.read_text(encoding="utf-8")


def _hex(colour: tuple[int, ...]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)
