"""What may stand in the place of a run's folder. Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from maskshards.shards.format.manifest import MANIFEST_NAME
from maskshards.train.checkpoint.run_files import BOARDS, FINAL, LAST, METRICS, NONFINITE, checkpoints_of
from maskshards.train.checkpoint.run_files import FOLDER as CHECKPOINTS
from maskshards.train.config.load import SHORT, WRITTEN
from maskshards.train.config.schema import ConfigError, TrainConfig

LOCK = ".lock"
PLACE_WORDS = {"output_dir", *(word for word, key in SHORT.items() if key == "output_dir")}
FILES = (WRITTEN, METRICS, FINAL)
SUBFOLDERS = (CHECKPOINTS, BOARDS, NONFINITE, "wandb")  # the last is where Weights & Biases writes


def check_output(config: TrainConfig, words: Sequence[str] = ()) -> None:
    """ConfigError where `output_dir` can be no run's folder, or is not where this one was.

    `words` are those of the command line.
    """
    folder = Path(config.output_dir or "")
    try:
        check_place(folder)
        check_not_data(folder, config.datasets.root)
        check_not_moved(config, words, folder)
    except OSError as error:
        raise unusable(folder, error) from error


def unusable(folder: Path, error: OSError) -> ConfigError:
    """For a folder that the system does not let us look into, make or write to."""
    reason = error.strerror or error
    return ConfigError(f"output_dir {folder!s:.200} cannot be written to ({reason}); name another")


def check_not_data(folder: Path, root: str) -> None:
    """ConfigError where a run would begin among shards: its files are none of theirs."""
    is_root = folder.is_dir() and Path(root).is_dir() and folder.samefile(root)
    if (is_root or (folder / MANIFEST_NAME).is_file()) and not checkpoints_of(folder, LAST):
        raise ConfigError(
            f"output_dir {folder} holds shards, and a run's files would lie among them; name a folder of its "
            "own, for example output_dir=run"
        )


def check_not_moved(config: TrainConfig, words: Sequence[str], folder: Path) -> None:
    """ConfigError where a moved run is to go on by its own `config.yaml`, which names its former folder.

    A new run would begin there.
    """
    given = dict(word.split("=", 1) for word in words if "=" in word)
    recipe = Path(given.get("config", "")).expanduser()
    if config.resume_from != "auto" or recipe.name != WRITTEN or given.keys() & PLACE_WORDS:
        return
    if checkpoints_of(recipe.parent, LAST) and not checkpoints_of(folder, LAST):
        raise ConfigError(
            f"{recipe} belongs to the run beside it, and says output_dir {folder}, where no run is: it was "
            f"moved or copied. Say output_dir={recipe.parent.absolute()} to "
            "continue it, or name another folder for a new run"
        )


def check_no_run(folder: Path) -> None:
    """ConfigError if a training ran in this folder: an evaluation would overwrite its files."""
    for name in (METRICS, FINAL, CHECKPOINTS):
        if (folder / name).exists():
            raise ConfigError(
                f"output_dir {folder} holds a training ({name}), whose config.yaml and results an evaluation "
                f"would overwrite; name another folder, for example output_dir={folder / 'evaluation'}"
            )


def check_place(folder: Path) -> None:
    """ConfigError if what stands in the place of a run's folders and files is of another kind.

    That is a file where a folder should be, a folder where a file should be, or a link that would lead out of
    the folder: a run of days would find it at its end.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"output_dir {folder} is a file; name a folder")
    for name in (*SUBFOLDERS, LOCK):
        if (folder / name).is_symlink():
            raise ConfigError(
                f"{folder / name} is a link; a run writes into its own folder only, remove the link"
            )
    for name in (*SUBFOLDERS, *FILES):
        place, is_file = folder / name, name in FILES
        if place.exists() and place.is_dir() == is_file:
            kinds = ("a folder", "a file") if is_file else ("a file", "a folder")
            raise ConfigError(
                f"{place} is {kinds[0]}, where a run keeps {kinds[1]} of that name; move it away, or name "
                "another output_dir"
            )
