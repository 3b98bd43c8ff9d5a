"""The build that most tests of this package make: pairs in folders, two samples to a shard, one worker."""

import hashlib
from pathlib import Path


def build_words(root, out, *more):
    """Words of `maskshards build` of a root from `make_root`; of a word that stands twice the last counts."""
    source = ["--dataset", "folder", "--root", str(root), "--classes", str(root / "classes.txt")]
    size = ["--samples-per-shard", "2", "--workers", "1", "--quiet"]
    return ["build", *source, "--reduce-zero-label", "--out", str(out), *size, *more]


def file_bytes(folder):
    """Relative path -> bytes of everything below a folder, hidden files included."""
    files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def contents(folder):
    """Relative path -> sha256, as `file_bytes`."""
    return {name: hashlib.sha256(data).hexdigest() for name, data in file_bytes(folder).items()}
