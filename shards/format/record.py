"""One sample of the format: its schema, and the only place that knows member names and JSON fields.

A sample is three members of a tar: the image with its source's own bytes, a small JSON of facts, and the
masks. Keys use a closed set of characters, because webdataset cuts a member's name at its first dot and
USTAR limits how long names may be; `escape_key` maps any file stem to one, and the original name stands in
the JSON. `from_members` is the inverse of `to_members` and refuses whatever that would not have written.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import zstandard

from maskshards.shards.errors import RunsError, SampleError
from maskshards.shards.format.rle import MAX_PIXELS, LabelledRuns, pack_runs, unpack_runs

FORMAT_VERSION = 1
IMAGE_FORMATS = ("jpg", "png")
JSON_ENDING, RUNS_ENDING = "json", "rle.zst"
MAX_JSON_BYTES = 1 << 20
MAX_IMAGE_BYTES = 1 << 30
LONGEST_NAME, LONGEST_PREFIX = 100, 155  # bytes that a USTAR header has for a name and for the folders before
KEY = re.compile(r"(?:[A-Za-z0-9_-]|%[0-9A-F]{2})+(?:/(?:[A-Za-z0-9_-]|%[0-9A-F]{2})+)*")
KEPT_OF_LONG_KEYS, DIGEST_OF_LONG_KEYS = 56, 32  # characters

Members = list[tuple[str, bytes]]


@dataclass(frozen=True, slots=True)
class Record:
    """One labelled image, ready to be written."""

    key: str  # see `escape_key`
    image: bytes  # the encoded file
    image_format: str  # "jpg" or "png"
    height: int  # pixels
    width: int  # pixels
    runs: LabelledRuns
    source: dict[str, Any]  # JSON facts: original name, digests, notes


def escape_key(stem: str) -> str:
    """The key of a source file's stem: all but A-Z a-z 0-9 _ - / percent-encoded.

    A stem too long for USTAR keeps its beginning and ends in a digest of the whole. Raises SampleError for a
    stem with an empty part between slashes.
    """
    # quote() never escapes '.' and '~', which keys may not hold.
    key = quote(stem, safe="/", errors="surrogateescape").replace(".", "%2E").replace("~", "%7E")
    if not KEY.fullmatch(key):
        raise SampleError("its name is empty or has an empty part between slashes; rename it", key=stem)
    if split_name(f"{key}.{RUNS_ENDING}") is not None:
        return key
    digest = hashlib.sha256(key.encode()).hexdigest()[:DIGEST_OF_LONG_KEYS]
    start = re.sub(r"%.?$", "", key.replace("/", "_")[:KEPT_OF_LONG_KEYS])  # no escape may be cut in two
    return f"{start}-{digest}"


def split_name(name: str) -> tuple[str, str] | None:
    """(prefix, rest) of a member's name as USTAR stores it, with the shortest prefix; None if too long."""
    if len(name) <= LONGEST_NAME:
        return "", name
    cut = name.find("/", len(name) - LONGEST_NAME - 1)
    if cut < 1 or cut > LONGEST_PREFIX:
        return None
    return name[:cut], name[cut + 1 :]


def member_names(key: str, image_format: str) -> tuple[str, str, str]:
    """Names of a sample's members in their order: image, JSON, runs."""
    return f"{key}.{image_format}", f"{key}.{JSON_ENDING}", f"{key}.{RUNS_ENDING}"


def check_key(key: str, shard: str = "") -> None:
    """SampleError unless `key` follows the grammar and fits into a tar."""
    if not KEY.fullmatch(key) or split_name(f"{key}.{RUNS_ENDING}") is None:
        what = "the key is too long or holds other characters than A-Z a-z 0-9 _ - / and %XX; see escape_key"
        raise SampleError(what, shard=shard, key=key)


def to_members(record: Record) -> Members:
    """(name, bytes) of the three members. SampleError where the record breaks the format."""
    check_key(record.key)
    if record.image_format not in IMAGE_FORMATS:
        what = f"image format {record.image_format!r}, expected one of {', '.join(IMAGE_FORMATS)}"
        raise SampleError(what, key=record.key)
    if not 0 < len(record.image) <= MAX_IMAGE_BYTES:
        what = f"image of {len(record.image)} bytes, expected 1 to {MAX_IMAGE_BYTES}"
        raise SampleError(what, key=record.key)
    try:
        runs = pack_runs(record.runs, record.height, record.width)
    except RunsError as error:
        raise SampleError(str(error), key=record.key) from error
    facts = {
        "version": FORMAT_VERSION,
        "height": record.height,
        "width": record.width,
        "class_ids": record.runs.labels.tolist(),
        "areas": record.runs.areas()[1:].tolist(),
        "source": record.source,
    }
    text = json.dumps(facts, ensure_ascii=True, allow_nan=False, sort_keys=True, separators=(",", ":"))
    if len(text) > MAX_JSON_BYTES:
        raise SampleError(f"facts of {len(text)} bytes, at most {MAX_JSON_BYTES} fit", key=record.key)
    names = member_names(record.key, record.image_format)
    return list(zip(names, (record.image, text.encode(), runs), strict=True))


def from_members(
    members: Sequence[tuple[str, bytes]],
    *,
    shard: str = "",
    decompressor: zstandard.ZstdDecompressor | None = None,
) -> Record:
    """The record of three members in order. SampleError, naming `shard` and key, for anything off."""
    names = [name for name, _ in members]
    key = names[0].split(".", 1)[0] if names else ""
    check_key(key, shard)
    image_format = next((ending for ending in IMAGE_FORMATS if names[0] == f"{key}.{ending}"), "")
    if not image_format or tuple(names) != member_names(key, image_format):
        what = f"its members are {', '.join(names)}; expected an image, {JSON_ENDING} and {RUNS_ENDING}"
        raise SampleError(what, shard=shard, key=key)
    (_, image), (_, text), (_, runs) = members
    try:
        facts = read_facts(text)
        found = unpack_runs(runs, facts["height"], facts["width"], decompressor)
        listed = facts["class_ids"], facts["areas"]
        if listed != (found.labels.tolist(), found.areas()[1:].tolist()):
            raise RunsError("class ids and areas in the JSON are not those of the runs")
        if not 0 < len(image) <= MAX_IMAGE_BYTES:
            raise ValueError(f"image of {len(image)} bytes, expected 1 to {MAX_IMAGE_BYTES}")
    except ValueError as error:
        what = f"{error}; fetch the shard again, or build it again if its digest is right"
        raise SampleError(what, shard=shard, key=key) from error
    return Record(key, image, image_format, facts["height"], facts["width"], found, facts["source"])


def read_facts(text: bytes) -> dict[str, Any]:
    """The checked fields of a sample's JSON member; ValueError says which one is wrong."""
    if len(text) > MAX_JSON_BYTES:
        raise ValueError(f"JSON of {len(text)} bytes, at most {MAX_JSON_BYTES} are allowed")
    try:
        facts = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its JSON cannot be read: {error}") from error
    if not isinstance(facts, dict) or facts.get("version") != FORMAT_VERSION:
        found = facts.get("version") if isinstance(facts, dict) else facts
        raise ValueError(f"its JSON has version {found!r}, this program reads version {FORMAT_VERSION}")
    height, width = facts.get("height"), facts.get("width")
    if type(height) is not int or type(width) is not int or height < 1 or width < 1:
        raise ValueError(f"its JSON has height {height!r} and width {width!r}, expected positive integers")
    if height * width > MAX_PIXELS:
        raise ValueError(f"its JSON claims {width}x{height} px, at most {MAX_PIXELS} pixels are allowed")
    for field in ("class_ids", "areas"):
        values = facts.get(field)
        if not isinstance(values, list) or not all(type(value) is int and value >= 0 for value in values):
            raise ValueError(f"its JSON has no list of numbers {field!r}")
    if not isinstance(facts.get("source"), dict):
        raise ValueError("its JSON has no object 'source'")
    return facts
