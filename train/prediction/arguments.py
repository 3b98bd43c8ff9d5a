"""The words that commands on a trained model have in common.

They say which model it is, and give keys that override its configuration.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from maskshards.shards.storage.foreign_file import read_lines
from maskshards.train.prediction.image_files import PredictError

KEY = re.compile(r"[a-z_][a-z0-9_]*(\.[\w.]+)*=")


def sort_words(
    argv: Sequence[str], old: Mapping[str, str]
) -> tuple[list[str], dict[str, list[str]], list[str]]:
    """(words for argparse, values by the new name of each `old` key, overrides section.key=value).

    The values are those of key=value words. A word that is a file here is never a key.
    """
    words: list[str] = []
    given: dict[str, list[str]] = {}
    overrides: list[str] = []
    for word in argv:
        key, equals, value = word.partition("=")
        if equals and key in old and not Path(word).exists():
            given.setdefault(old[key], []).append(value)
        elif KEY.match(word) and not Path(word).exists():
            overrides.append(word)
        else:
            words.append(word)
    return words, given, overrides


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Options for what the model's own files leave open or have wrong by now."""
    add = parser.add_argument
    add("--weights", metavar="WHERE", help="the backbone's weights, if they lie elsewhere than in training")
    add("--recipe", metavar="FILE", help="the recipe of the training, for weights without a configuration")
    add("--classes", metavar="FILE", help="names of the classes, one a line, in place of the stored ones")


def read_names(path: str | None) -> list[str] | None:
    """The names in a file, one a line; None without a file. PredictError for what is no text."""
    if path is None:
        return None
    try:
        lines = read_lines(Path(path).expanduser())
    except UnicodeDecodeError as error:
        raise PredictError(f"--classes {path} is no text in UTF-8; save it as that") from error
    return [line.strip() for line in lines if line.strip()]
