"""`maskshards preview URL --out preview.html`: see what the masks are, on one page without network.

Samples spread evenly over each split with their masks drawn on them, the image in which each class covers
most, the legend and the histograms of `info`. Colours are the data set's own palette where its manifest has
one.
"""

from __future__ import annotations

import argparse
import colorsys
import io
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from maskshards.shards.commands.info import survey
from maskshards.shards.commands.preview_page import Card, Section, html_page
from maskshards.shards.decode.jpeg import decode_image
from maskshards.shards.format.manifest import Split, open_splits
from maskshards.shards.format.record import Record, from_members
from maskshards.shards.format.rle import IGNORE, decode_label_map
from maskshards.shards.format.tar import read_members
from maskshards.shards.storage.atomic_write import replacing

PHOTO_PX, EXAMPLE_PX = 320, 150  # longest side in the mosaic and among the examples
GOLDEN_TURN = 0.61803399  # of the colour circle; neighbours in number are then far apart in hue


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command to `parser`."""
    parser.add_argument("url", help="a data set (OUT) or one of its splits (OUT/SPLIT); a folder or a URL")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the HTML file to write")
    parser.add_argument("--samples", type=int, default=24, metavar="N", help="pictures of each split (24)")
    parser.add_argument(
        "--examples",
        type=int,
        default=150,
        metavar="N",
        help="classes with an example picture, commonest first (150)",
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Write the page; where it is and how much stands on it."""
    if args.out.is_dir() or not args.out.parent.is_dir():
        folder = "is a folder" if args.out.is_dir() else "lies in a folder that does not exist"
        raise OSError(f"--out {args.out} {folder}; name an HTML file in one that does, such as preview.html")
    if args.samples < 1 or args.examples < 0:
        raise ValueError("--samples must be at least 1 and --examples at least 0")
    sections = [_section(split, args.samples, args.examples) for split in open_splits(args.url)]
    page = html_page(sections)
    with replacing(args.out) as hidden, hidden.open("x", encoding="utf-8") as file:  # through no link
        file.write(page)
    pictures = sum(len(section.mosaic) + len(section.examples) for section in sections)
    return {"out": str(args.out), "bytes": len(page.encode()), "pictures": pictures}


def as_text(facts: dict[str, Any]) -> str:
    """For reading."""
    return (
        f"{facts['out']}: {facts['pictures']} pictures, {facts['bytes'] / 1e6:.1f} MB; open it in a browser"
    )


def class_colours(split: Split) -> np.ndarray:
    """(C, 3) uint8 RGB of each class: the manifest's palette, or hues a golden turn apart."""
    manifest = split.manifest
    if manifest.palette is not None:
        return np.array(manifest.palette, np.uint8)
    turns = (GOLDEN_TURN * k % 1 for k in range(len(manifest.classes)))
    shades = ((0.95, 0.65, 0.8)[k % 3] for k in range(len(manifest.classes)))
    colours = [colorsys.hsv_to_rgb(turn, 0.85, shade) for turn, shade in zip(turns, shades, strict=True)]
    return np.asarray(np.rint(255 * np.array(colours).reshape(-1, 3)), np.uint8)


def _section(split: Split, num_samples: int, num_examples: int) -> Section:
    facts, colours = survey(split), class_colours(split)
    names = split.manifest.classes
    total = split.manifest.num_samples
    wanted = np.unique(np.linspace(0, max(0, total - 1), min(num_samples, total)).round().astype(np.int64))
    mosaic = [_card(record, names, colours) for record in _records(split, wanted)]
    common = sorted((c for c in facts["classes"] if c["pixels"]), key=lambda c: -c["pixels"])[:num_examples]
    places = _largest(split, len(names))[[entry["id"] for entry in common]]
    examples = [
        _example(record, entry["id"], names, colours)
        for entry, record in zip(common, _records(split, places), strict=True)
    ]
    return Section(facts, [tuple(colour) for colour in colours.tolist()], mosaic, examples)


def _largest(split: Split, num_classes: int) -> np.ndarray:
    """(C,) number in the split of the sample in which each class covers the largest share."""
    best, place, start = np.zeros(num_classes), np.zeros(num_classes, np.int64), 0
    for number in range(len(split.manifest.shards)):
        rows = split.index(number)
        owner = np.repeat(np.arange(len(rows)), np.diff(rows.label_offsets))
        share = rows.flat_areas / (rows.height.astype(np.int64) * rows.width)[owner]
        for class_id, part, row in zip(
            rows.flat_class_ids.tolist(), share.tolist(), owner.tolist(), strict=True
        ):
            if part > best[class_id]:
                best[class_id], place[class_id] = part, start + row
        start += len(rows)
    return place


def _records(split: Split, places: np.ndarray) -> Iterator[Record]:
    """The samples at some places of the split, read and checked."""
    starts = np.concatenate([[0], np.cumsum(split.manifest.shard_samples)])
    for place in places.tolist():
        number = int(np.searchsorted(starts, place, side="right")) - 1
        name = split.manifest.shards[number].name
        entry = split.index(number).entry(place - int(starts[number]))
        members = read_members(partial(split.store.read, name), entry, shard=name)
        yield from_members(members, shard=name)


def _card(record: Record, names: tuple[str, ...], colours: np.ndarray) -> Card:
    photo, classes = _decoded(record, PHOTO_PX)
    drawn = np.zeros((*classes.shape, 4), np.uint8)
    inside = classes != IGNORE
    drawn[inside, :3], drawn[inside, 3] = colours[classes[inside]], 255
    return _encoded(record, photo, drawn, [names[k] for k in record.runs.labels])


def _example(record: Record, class_id: int, names: tuple[str, ...], colours: np.ndarray) -> Card:
    """One class in full light, everything else in the dark."""
    photo, classes = _decoded(record, EXAMPLE_PX)
    drawn = np.zeros((*classes.shape, 4), np.uint8)
    drawn[..., 3] = 190
    drawn[classes == class_id] = (*colours[class_id], 60)
    return _encoded(record, photo, drawn, [names[class_id]])


def _decoded(record: Record, longest_px: int) -> tuple[Image.Image, np.ndarray]:
    """The image and its (h, w) class map, both made smaller to fit."""
    pixels = np.empty((record.height, record.width, 3), np.uint8)
    decode_image(record.image, record.image_format, pixels)
    scale = min(1.0, longest_px / max(record.height, record.width))
    size = max(1, round(record.width * scale)), max(1, round(record.height * scale))
    classes = Image.fromarray(decode_label_map(record.runs, record.height, record.width))
    small = Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR)
    return small, np.asarray(classes.resize(size, Image.Resampling.NEAREST)).astype(np.uint16)


def _encoded(record: Record, photo: Image.Image, drawn: np.ndarray, classes: list[str]) -> Card:
    jpeg, png = io.BytesIO(), io.BytesIO()
    photo.save(jpeg, "JPEG", quality=82)
    Image.fromarray(drawn).save(png, "PNG")
    return Card(record.key, record.height, record.width, tuple(classes), jpeg.getvalue(), png.getvalue())
