"""COCO's JSON as a table on disk, so that every worker reads the annotations of one image alone.

The JSON of COCO 2017 has 450 MB, which would take gigabytes as Python objects in each process. It is read
object by object, once a machine, into a SQLite file in the temporary folder, named by what identifies the
JSON file; other processes find it there.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import sqlite3
import tempfile
from collections.abc import Iterator
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from maskshards.preprocess.errors import RejectedInput, SourceError
from maskshards.preprocess.inputs.source_files import file_stamp
from maskshards.shards.storage.foreign_file import check_sparse, read_text

MOST_BYTES = 16 << 30  # of the JSON; that of COCO 2017 has 0.45 GB
BLANK = re.compile(r"[ \t\r\n]*")
TABLE_VERSION = 1  # grows when the tables change
LISTS = ("images", "annotations")  # read object by object; all else is small
SCHEMA = """
create table images (name text primary key, id integer unique, height integer, width integer);
create table annotations (image integer, facts text);
create table categories (id integer primary key, facts text);
"""
Object = dict[str, Any]


class AnnotationTable:
    """The images and annotations of one JSON file."""

    def __init__(self, database: Path) -> None:
        self._rows = sqlite3.connect(f"file:{database}?mode=ro", uri=True, check_same_thread=False)

    def categories(self) -> list[Object]:
        """All categories, by id."""
        return [
            json.loads(facts) for (facts,) in self._rows.execute("select facts from categories order by id")
        ]

    @cached_property
    def category_ids(self) -> frozenset[int]:
        """The ids of all categories."""
        return frozenset(number for (number,) in self._rows.execute("select id from categories"))

    def num_strays(self) -> int:
        """Annotations of images that the file does not list."""
        query = "select count(*) from annotations where image is null or image not in (select id from images)"
        (count,) = self._rows.execute(query).fetchone()
        return int(count)

    def images(self) -> dict[str, bool]:
        """File name -> whether the image has an annotation."""
        annotated = "exists (select 1 from annotations where annotations.image = images.id)"
        return {
            name: bool(some) for name, some in self._rows.execute(f"select name, {annotated} from images")
        }

    def size(self, name: str) -> tuple[int, int]:
        """(height, width) of an image, in pixels. RejectedInput where the file says something else."""
        found = self._rows.execute("select height, width from images where name = ?", (name,)).fetchone()
        if not all(type(length) is int for length in found):
            raise RejectedInput(f"the annotations give it the height and width {found!r:.80}")
        return int(found[0]), int(found[1])

    def annotations(self, name: str) -> list[Object]:
        """The annotations of an image, in the order of the file."""
        query = (
            "select facts from annotations where image = (select id from images where name = ?)"
            " order by rowid"
        )
        return [json.loads(facts) for (facts,) in self._rows.execute(query, (name,))]


def open_table(path: str) -> AnnotationTable:
    """The table of a JSON file, made where it is not there yet. SourceError where the file is not COCO's."""
    return _table(path, file_stamp(path))


@lru_cache(maxsize=16)
def _table(path: str, state: str) -> AnnotationTable:
    """That of the file as it is in that state."""
    stamp = hashlib.sha256(f"{TABLE_VERSION} {os.path.realpath(path)} {state}".encode())
    database = _folder() / f"{stamp.hexdigest()[:32]}.sqlite"
    if not database.exists():
        scratch = database.with_suffix(f".{os.getpid()}")
        try:
            _write(path, scratch)
            os.replace(scratch, database)
        except (
            OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError, sqlite3.Error,
        ) as error:  # fmt: skip
            if isinstance(error, SourceError):
                raise
            if isinstance(error, sqlite3.OperationalError):
                raise SourceError(
                    f"{database.parent}: the table of {path} cannot be written there ({error}); make room, or"
                    " set TMPDIR to another folder"
                ) from error
            reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
            if isinstance(error, sqlite3.IntegrityError):
                reason = f"two entries have one id or name: {error}"
            raise SourceError(f"{path}: not COCO's JSON ({reason})") from error
        finally:
            scratch.unlink(missing_ok=True)
    return AnnotationTable(database)


def _folder() -> Path:
    """A folder of this user alone."""
    folder = Path(tempfile.gettempdir()) / f"maskshards-coco-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid() or folder.stat().st_mode & 0o022:
        raise SourceError(f"{folder} is not this user's alone; remove it, or set TMPDIR to another folder")
    return folder


def _write(path: str, database: Path) -> None:
    with contextlib.closing(sqlite3.connect(database)) as rows:
        rows.executescript(SCHEMA)
        whole = read_text(path, MOST_BYTES, encoding="utf-8-sig")
        check_sparse(whole)
        for key, value, text in _objects(whole):
            if key == "images":
                if not isinstance(value["file_name"], str):
                    raise ValueError(f"an image has the file_name {value['file_name']!r:.40}, expected text")
                words = (value["file_name"], value["id"], value["height"], value["width"])
                rows.execute("insert into images values (?, ?, ?, ?)", words)
            elif key == "annotations":
                rows.execute("insert into annotations values (?, ?)", (value["image_id"], text))
            elif key == "categories":
                strange = [entry["id"] for entry in value if type(entry["id"]) is not int]
                if strange:
                    raise ValueError(f"a category has the id {strange[0]!r:.40}, expected a whole number")
                pairs = [(entry["id"], json.dumps({**entry, "name": str(entry["name"])})) for entry in value]
                rows.executemany("insert into categories values (?, ?)", pairs)
        rows.execute("create index by_image on annotations (image)")
        counts = [
            rows.execute(f"select count(*) from {name}").fetchone()[0] for name in ("images", "categories")
        ]
        if not all(counts):
            raise KeyError("images" if not counts[0] else "categories")
        rows.commit()


def _objects(text: str) -> Iterator[tuple[str, Any, str]]:
    """Key, value and the value's JSON, of the outermost object; of the long lists one element at a time.

    ValueError for other text.
    """
    decoder = json.JSONDecoder()
    at = _skip(text, 0, "{")
    while text[at : at + 1] != "}":
        key, at = decoder.raw_decode(text, at)
        at = _skip(text, _blank(text, at), ":")
        if key in LISTS and text[at : at + 1] == "[":
            at = _blank(text, at + 1)
            while text[at : at + 1] != "]":
                value, end = decoder.raw_decode(text, at)
                yield key, value, text[at:end]
                at = _comma(text, end, "]")
            at += 1
        else:
            value, end = decoder.raw_decode(text, at)
            yield key, value, ""
            at = end
        at = _comma(text, at, "}")


def _comma(text: str, at: int, end: str) -> int:
    at = _blank(text, at)
    return at if text[at : at + 1] == end else _skip(text, at, ",")


def _skip(text: str, at: int, expected: str) -> int:
    at = _blank(text, at)
    if text[at : at + 1] != expected:
        raise ValueError(f"expected {expected!r} at character {at}, found {text[at : at + 10]!r}")
    return _blank(text, at + 1)


def _blank(text: str, at: int) -> int:
    match = BLANK.match(text, at)
    return match.end() if match else at
