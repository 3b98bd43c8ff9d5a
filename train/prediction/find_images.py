"""Which files of the inputs are images, and under which names their labels go.

Nothing is passed over without being counted: other files by their ending, hidden ones, links to folders.
"""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path

from maskshards.shards.errors import counted
from maskshards.shards.storage.foreign_file import open_regular
from maskshards.train.prediction.image_files import SUFFIXES, PredictError, can_read

OWN_FOLDERS = ("labels", "overlays", "scores")  # beside a prediction's table: its labels are no input
SHOWN = 6


@dataclass
class Found:
    """Images with the names of their outputs, and what was passed over."""

    images: list[tuple[Path, str]] = field(default_factory=list)  # path, name without suffix ("deep/b")
    passed_over: Counter[str] = field(default_factory=Counter)  # kind -> how many

    def summary(self) -> str:
        """What was passed over, in one line; empty for nothing."""
        if not self.passed_over:
            return ""
        kinds = [f"{count} {kind}" for kind, count in self.passed_over.most_common()]
        more = f", and {len(kinds) - SHOWN} other kinds" if len(kinds) > SHOWN else ""
        many = self.passed_over.total()
        return f"passed over {counted(many, 'file')}: {', '.join(kinds[:SHOWN])}{more}"


def find_images(inputs: Sequence[str]) -> Found:
    """Every image behind `inputs`: files, folders (searched in depth) or patterns with *.

    What a prediction wrote into a folder is none of its images.

    Names are paths below the folder that all inputs have in common, so no two images share one; where only
    the ending tells two apart, it stays in the name. PredictError if there is no image at all.
    """
    found, files = Found(), []
    for text in inputs:
        for path in _expanded(text):
            if path.is_dir():
                files += [(file, path) for file in _walk(path, found.passed_over)]
            else:
                files.append((path, path.parent))
    unique = {os.path.abspath(file): (file, root) for file, root in files}
    if not unique:
        listed = ", ".join(inputs)
        raise PredictError(
            f"{listed} holds no image that can be read here: {found.summary() or 'it is empty'}; read are "
            f"{', '.join(suffix for suffix in SUFFIXES if can_read(suffix))}"
            + (
                " (.heic and .heif with pip install 'maskshards[heic]')"
                if any(".hei" in kind for kind in found.passed_over)
                else ""
            )
        )
    common = Path(os.path.commonpath([os.path.abspath(root) for _, root in unique.values()]))
    found.images = sorted(
        ((file, str(Path(full).relative_to(common))) for full, (file, _) in unique.items()),
        key=lambda pair: pair[1],
    )
    found.images = _named(found.images)
    return found


def was_written_here(output: Path) -> bool:
    """Whether `output` is a folder that an earlier prediction wrote, by its table of classes."""
    try:
        with open_regular(output / "classes.csv") as file:
            return file.readline(64).startswith(b"id,class,")
    except OSError:
        return False


def _expanded(text: str) -> list[Path]:
    path = Path(text).expanduser()
    if path.exists():
        return [path]
    found = glob.glob(str(path), recursive=True)
    matches = sorted(Path(match) for match in found if not by_link(match, path))
    if not matches:
        raise PredictError(f"input {text} does not exist; give image files, folders of images or patterns")
    return matches


def by_link(match: str, pattern: Path) -> bool:
    """Whether a match was found through a link to a folder where the pattern has its stars.

    One that leads back up makes 40 copies of every file.
    """
    plain = list(takewhile(lambda part: not glob.has_magic(part), pattern.parts))
    folders = Path(match).parts[len(plain) : -1]
    return any(Path(*plain, *folders[: k + 1]).is_symlink() for k in range(len(folders)))


def _walk(folder: Path, passed_over: Counter[str]) -> Iterator[Path]:
    for base, folders, names in os.walk(folder):
        here = Path(base)
        links = [name for name in folders if (here / name).is_symlink()]
        if links:
            passed_over["links to folders"] += len(links)
        earlier = [name for name in folders if name in OWN_FOLDERS] if was_written_here(here) else []
        if earlier:
            passed_over["folders of an earlier prediction"] += len(earlier)
        skipped = {*links, *earlier}
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in skipped)
        for name in sorted(names):
            kind = _kind(here / name)
            if kind:
                passed_over[kind] += 1
            else:
                yield here / name


def _kind(path: Path) -> str:
    """Why a file of a folder is no input; empty for an image."""
    suffix = path.suffix.lower()
    if path.name.startswith("."):
        return "hidden"
    if not path.is_file():
        return "no regular file"
    if suffix not in SUFFIXES:
        return suffix[:12] if suffix.isprintable() and suffix else "without ending"
    return "" if can_read(suffix) else f"{suffix} (needs another package)"


def _named(images: list[tuple[Path, str]]) -> list[tuple[Path, str]]:
    """Names without their endings, but with them where two would be one (also where case tells nothing)."""
    names = {full: os.path.splitext(full)[0] for _, full in images}
    while True:
        counts = Counter(name.casefold() for name in names.values())
        double = [full for full, name in names.items() if counts[name.casefold()] > 1 and name != full]
        if not double:
            return [(path, names[full]) for path, full in images]
        names |= {full: full for full in double}
