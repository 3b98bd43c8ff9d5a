"""Where splits are, and what is there instead: the first mistake of every user is a wrong folder.

A folder is listed. A URL cannot be, so the usual names are tried below it.
"""

from __future__ import annotations

import shlex
from pathlib import Path

from maskshards.shards.errors import StoreError
from maskshards.shards.storage.base import SCHEME
from maskshards.shards.storage.open_store import folder_of, open_store

MANIFEST_NAME = "manifest.json"
USUAL_SPLITS = ("training", "validation", "train", "val", "test")


def splits_below(place: str) -> list[str]:
    """Names of the splits one step below `place`, sorted."""
    if SCHEME.match(place):
        found = []
        for name in USUAL_SPLITS:
            store = open_store(f"{place.rstrip('/')}/{name}")
            try:
                store.size(MANIFEST_NAME)
                found.append(name)
            except StoreError:
                continue
            finally:
                store.close()
        return found
    folder = folder_of(place)
    return sorted(path.parent.name for path in folder.glob(f"*/{MANIFEST_NAME}")) if folder.is_dir() else []


def what_is_there(place: str, error: StoreError) -> str:
    """Why `place` is no split, and what to do."""
    if SCHEME.match(place):
        return f"{place}: no {MANIFEST_NAME} could be read there ({error}); give the URL of a split"
    folder = folder_of(place)
    if folder.is_file():
        return f"{place}: it is a file; give the folder that holds it, {folder.parent}"
    if not folder.is_dir():
        return f"{place}: there is no such folder; {_instead(folder.parent)}"
    if (folder / MANIFEST_NAME).exists():
        return f"{place}: {error}"
    if below := splits_below(place):
        return f"{place}: it holds the splits {', '.join(below)}; name one, such as {folder / below[0]}"
    if _is_source(folder):
        return f"{place}: it is {_build_first(folder)}"
    if (folder / ".build").is_dir() or any(folder.glob("*.tar")):
        return f"{place}: shards without {MANIFEST_NAME}: the build was not finished; run its command again"
    found = sorted(path.name for path in folder.iterdir())
    some = f"it holds {', '.join(found[:5])}{', ...' if len(found) > 5 else ''}" if found else "it is empty"
    return f"{place}: no {MANIFEST_NAME} there ({some}); give a folder that maskshards build wrote"


def _instead(above: Path) -> str:
    """What to do about a folder that is not in `above`: a training run names splits below its root."""
    if _is_source(above):
        return f"{above} is {_build_first(above)}"
    if (above / MANIFEST_NAME).exists():
        return f"{above} is one split; give the folder that holds its splits, {above.parent}"
    if below := splits_below(str(above)):
        return f"{above} holds the splits {', '.join(below)}; name one of them"
    return "give a folder that maskshards build wrote"


def _is_source(folder: Path) -> bool:
    return any((folder / name).is_dir() for name in ("annotations", "labels", "masks"))


def _build_first(source: Path) -> str:
    kind = "ade20k" if (source / "objectInfo150.txt").exists() else "folder --classes FILE"
    return (
        "a source data set (images and label maps), not shards; build them first:"
        f" maskshards build --dataset {kind} --root {shlex.quote(str(source))} --out OUT"
    )
