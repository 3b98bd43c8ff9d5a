"""Recipes by name: a file that is there, or one of those that come with the package, from any directory."""

from __future__ import annotations

from pathlib import Path

import maskshards.configs
from maskshards.train.config.schema import ConfigError, nearest

PACKAGED = Path(maskshards.configs.__file__).parent
ENDING = ".yaml"


def packaged_recipes() -> list[str]:
    """Names of the recipes that come with the package, without their ending."""
    return sorted(path.stem for path in PACKAGED.glob(f"*{ENDING}"))


def find_recipe(word: str) -> Path:
    """The file that `config=WORD` means: a path, or the name of a packaged recipe.

    ConfigError for a name that is neither, with what there is.
    """
    if not word or "://" in word:
        raise ConfigError(f"config={word}: expected a recipe's name or a YAML file on this machine")
    path = Path(word).expanduser()
    if path.suffix == ENDING or path.exists():
        inside = PACKAGED / path.name
        # `configs/NAME.yaml` stands in documents; it means the packaged file wherever it is said.
        return inside if not path.exists() and path.parts[:-1] == ("configs",) and inside.exists() else path
    if len(path.parts) == 1 and (PACKAGED / f"{word}{ENDING}").is_file():
        return PACKAGED / f"{word}{ENDING}"
    known = packaged_recipes()
    raise ConfigError(
        f"config={word}: neither a file nor a recipe of this package; {nearest(word, known)} "
        f"(recipes: {', '.join(known)})"
    )
