"""The HTML of a preview: one file, everything inside it, nothing loaded from elsewhere.

Names and keys come from data that somebody else made, so all text is escaped, and a content policy forbids
the page to fetch anything.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable
from dataclasses import dataclass
from html import escape
from typing import Any

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 1320px; padding: 0 1rem }
h1, h2, h3 { line-height: 1.2 } code { font-size: 12px; color: #555; overflow-wrap: anywhere }
.bar { position: sticky; top: 0; background: #fffe; padding: .5rem 0; border-bottom: 1px solid #ddd }
.bar { z-index: 1 }
.grid { display: flex; flex-wrap: wrap; gap: 14px } figure { margin: 0; max-width: 320px }
.pair { position: relative; display: inline-block; line-height: 0; background: #eee }
.mask { position: absolute; inset: 0; width: 100%; height: 100%; image-rendering: pixelated }
.mosaic .mask { opacity: var(--ink, .5) } figcaption { font-size: 12px; color: #444; overflow-wrap: anywhere }
.examples figure { max-width: 150px } .columns { columns: 3 20rem }
.row { break-inside: avoid; font-size: 13px }
.swatch { display: inline-block; width: .8em; height: .8em; border: 1px solid #0003; margin-right: .4em }
.meter { display: inline-block; height: .7em; background: #58a; vertical-align: baseline }
table { border-collapse: collapse; font-size: 13px } td { padding: 0 .6em 0 0 }
td:first-child { text-align: right }
"""
SCRIPT = """
const ink = document.getElementById('ink'), at = document.getElementById('at');
ink.oninput = () => document.documentElement.style.setProperty('--ink', ink.value / 100);
const names = JSON.parse(document.getElementById('names').textContent);
const board = document.createElement('canvas'), pen = board.getContext('2d', {willReadFrequently: true});
document.querySelectorAll('.mosaic .mask').forEach(mask => mask.onmousemove = event => {
  if (board.owner !== mask) {
    board.width = mask.naturalWidth; board.height = mask.naturalHeight;
    pen.drawImage(mask, 0, 0); board.owner = mask;
  }
  const x = Math.floor(event.offsetX * board.width / mask.clientWidth);
  const y = Math.floor(event.offsetY * board.height / mask.clientHeight);
  const [r, g, b, a] = pen.getImageData(x, y, 1, 1).data;
  at.textContent = a ? names[mask.closest('section').id][[r, g, b]] || '' : 'in no mask';
});
window.onload = () => {
  const all = [...document.images], shown = all.filter(image => image.complete && image.naturalWidth > 0);
  document.getElementById('count').textContent = shown.length + ' of ' + all.length + ' pictures shown';
};
"""


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
    lookup = json.dumps(names).replace("<", "\\u003c")
    title = escape(sections[0].facts["dataset"]) if sections else ""
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}"><style>{STYLE}</style></head><body>'
        f'<h1>{title}</h1><div class="bar"><label>masks <input id="ink" type="range" value="50"></label>'
        ' &nbsp; <b id="at"></b></div>'
        + "".join(_section(number, section) for number, section in enumerate(sections))
        + f'<p id="count"></p><script id="names" type="application/json">{lookup}</script>'
        f"<script>{SCRIPT}</script></body></html>\n"
    )


def _section(number: int, section: Section) -> str:
    facts = section.facts
    each = facts["masks"] / facts["samples"] if facts["samples"] else 0
    return (
        f'<section id="split{number}"><h2>{escape(facts["split"])}</h2>'
        f"<p>{facts['samples']:,} images in {facts['shards']:,} shards, {facts['bytes'] / 1e6:,.1f} MB;"
        f" {facts['masks']:,} masks, {each:.1f} an image; {facts['void_share']:.2%} of the pixels in none."
        f"<br><code>{escape(facts['place'])}<br>fingerprint {facts['fingerprint']}</code></p>"
        f'<h3>Samples</h3><div class="grid mosaic">{"".join(map(_sample, section.mosaic))}</div>'
        f"<h3>Classes</h3>{_legend(section)}"
        f"<h3>Where each class covers most</h3>"
        f'<div class="grid examples">{"".join(map(_example, section.examples))}</div>'
        f"<h3>Short side, px</h3>{_histogram(facts['short_sides'].items())}"
        f"<h3>Classes in an image</h3>{_histogram(facts['classes_per_image'].items())}</section>"
    )


def _example(card: Card) -> str:
    return _figure(card, f"<b>{_short_names(card)}</b><br>{escape(card.key)}")


def _sample(card: Card) -> str:
    return _figure(card, f"<b>{escape(card.key)}</b>, {card.width}x{card.height}<br>{_short_names(card)}")


def _short_names(card: Card) -> str:
    """Of a name with synonyms, as ADE20K's are, the first will do below a picture."""
    return escape(" · ".join(name.split(",")[0] for name in card.classes))


def _figure(card: Card, caption: str) -> str:
    photo, mask = (base64.b64encode(data).decode() for data in (card.photo, card.mask))
    return (
        f'<figure><div class="pair"><img alt="" src="data:image/jpeg;base64,{photo}">'
        f'<img class="mask" alt="" src="data:image/png;base64,{mask}"></div>'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _legend(section: Section) -> str:
    facts = section.facts
    labelled = max(1, sum(entry["pixels"] for entry in facts["classes"]))
    most = max((entry["pixels"] for entry in facts["classes"]), default=0) / labelled
    rows = []
    present = [entry for entry in facts["classes"] if entry["pixels"]]
    for entry in sorted(present, key=lambda entry: -entry["pixels"]):
        share = entry["pixels"] / labelled
        colour = "#{:02x}{:02x}{:02x}".format(*section.colours[entry["id"]])
        rows.append(
            f'<div class="row"><span class="swatch" style="background:{colour}"></span>{entry["id"]}'
            f' {escape(entry["name"])} <span class="meter" style="width:{_width(share, most)}px"></span>'
            f" {share:.2%}, {entry['images']:,} images</div>"
        )
    absent = [
        f"{entry['id']} {entry['name'].split(',')[0]}" for entry in facts["classes"] if not entry["pixels"]
    ]
    tail = f"<p><small>Without a pixel: {escape(', '.join(absent))}.</small></p>" if absent else ""
    return f'<div class="columns">{"".join(rows)}</div>{tail}'


def _histogram(bins: Iterable[tuple[str, int]]) -> str:
    entries = list(bins)
    most = max((count for _, count in entries), default=0)
    rows = (
        f'<tr><td>{escape(name)}</td><td><span class="meter" style="width:{_width(count, most)}px"></span>'
        f" {count:,}</td></tr>"
        for name, count in entries
    )
    return f"<table>{''.join(rows)}</table>"


def _width(count: float, most: float) -> int:
    return round(120 * count / most) if most else 0
