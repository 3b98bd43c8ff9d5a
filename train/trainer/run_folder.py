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
from maskshards.shards.storage.made_folder import made_folder
from maskshards.train.checkpoint.output_place import LOCK, check_no_run, check_output, unusable
from maskshards.train.config.schema import ConfigError, TrainConfig
from maskshards.train.distributed.ranks import Ranks

PATIENCE_S = 30.0  # torchrun gives a rank this long to die before it kills it


@contextmanager
def run_folder(config: TrainConfig, ranks: Ranks, words: Sequence[str] = ()) -> Iterator[Path]:
    """The folder `output_dir`, made by the first rank and this run's alone until the block ends.

    `words` are those of the command line. Folders that were made for a run that then left nothing in them go
    again.

    Raises ConfigError on the first rank, and its words as FirstRankError on the others, if something else
    stands in its place or another run is writing there.
    """
    folder = Path(config.output_dir or "")

    def claim() -> Path:
        check_output(config, words)
        try:
            stack.enter_context(made_folder(folder))
            stack.enter_context(held(folder / LOCK, PATIENCE_S))
        except LockedError as error:
            raise ConfigError(
                f"output_dir {folder}: another run is writing here ({error.holder or 'it left no name'}); "
                "let it end, or stop it and say resume_from=auto, or name another folder"
            ) from error
        except OSError as error:
            raise unusable(folder, error) from error
        if config.load_from is not None:
            check_no_run(folder)
        return folder

    with ExitStack() as stack:
        yield ranks.from_first(claim)
