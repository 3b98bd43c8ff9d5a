"""The folder of one run, and of one run only at a time.

The first rank makes it and holds its lock for as long as the run lasts, so a second run, an evaluation or a
forgotten job cannot mix its files with ours. A run that dies, however, lets go at once; one that torchrun is
still ending is waited for. All ranks learn of a refusal together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from maskshards.shards.storage.file_lock import LockedError, held
from maskshards.train.checkpoint.checkpoint import FINAL, LAST, checkpoints_of
from maskshards.train.checkpoint.checkpoint import FOLDER as CHECKPOINTS
from maskshards.train.config.load import SHORT, WRITTEN
from maskshards.train.config.schema import ConfigError, TrainConfig
from maskshards.train.distributed.ranks import Ranks
from maskshards.train.tracking.metrics_log import METRICS
from maskshards.train.tracking.tensorboard import FOLDER as BOARDS
from maskshards.train.trainer.build import NONFINITE

LOCK = ".lock"
PLACE_WORDS = {"output_dir", *(word for word, key in SHORT.items() if key == "output_dir")}
PATIENCE_S = 30.0  # torchrun gives a rank this long to die before it kills it
SUBFOLDERS = (CHECKPOINTS, BOARDS, NONFINITE, "wandb")  # the last is where Weights & Biases writes


@contextmanager
def run_folder(config: TrainConfig, ranks: Ranks, words: Sequence[str] = ()) -> Iterator[Path]:
    """The folder `output_dir`, made by the first rank and this run's alone until the block ends. `words` are
    those of the command line.

    Raises ConfigError on the first rank, and its words as FirstRankError on the others, if something else
    stands in its place or another run is writing there.
    """
    folder = Path(config.output_dir or "")

    def claim() -> Path:
        check_place(folder)
        check_not_moved(config, words, folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(held(folder / LOCK, PATIENCE_S))
        except LockedError as error:
            raise ConfigError(
                f"output_dir {folder}: another run is writing here ({error.holder or 'it left no name'}); "
                "let it end, or stop it and say resume_from=auto, or name another folder"
            ) from error
        except OSError as error:
            reason = error.strerror or error
            raise ConfigError(f"output_dir {folder} cannot be written to ({reason}); name another") from error
        if config.load_from is not None:
            check_no_run(folder)
        return folder

    with ExitStack() as stack:
        yield ranks.from_first(claim)


def check_not_moved(config: TrainConfig, words: Sequence[str], folder: Path) -> None:
    """ConfigError where a run is to go on by its own `config.yaml`, which names the folder that it was moved
    from: a new run would begin there.
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
    """ConfigError if a file stands where the folder should, or a link would lead out of it."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"output_dir {folder} is a file; name a folder")
    for name in (*SUBFOLDERS, LOCK):
        if (folder / name).is_symlink():
            raise ConfigError(
                f"{folder / name} is a link; a run writes into its own folder only, remove the link"
            )
