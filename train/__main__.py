"""`maskshards train config=RECIPE output_dir=... datasets.root=... key=value ...`.

It runs alone or under torchrun or srun. All words are checked before torch is loaded, and for a single
process the data, the weights' place and the output folder too: a typo is answered at once. Ctrl-C until then
is quiet, SIGTERM and SIGUSR1 are told in one line.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable
from functools import partial

from maskshards.shards.errors import StoreError
from maskshards.shards.process import check_names, open_closed_streams


def main(argv: list[str]) -> int:
    """Train or evaluate; exit status as `launch` gives it, 130 for Ctrl-C before the run began."""
    open_closed_streams()
    try:
        check_names()
        return parse_and_run(argv)
    except StoreError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def evaluate_main(argv: list[str]) -> int:
    """As `main`, but only with `load_from`: nothing is ever trained."""
    if argv and argv[0] in ("-h", "--help"):
        from maskshards.train.config.explain import EVALUATE, help_text

        sys.stdout.write(help_text(EVALUATE))
        return 0
    if argv and not any(word.startswith("load_from=") for word in argv):
        sys.stderr.write("error: load_from is not set; say load_from=CHECKPOINT, the weights to evaluate\n")
        return 2
    return main(argv)


def parse_and_run(argv: list[str]) -> int:
    """The words to a checked configuration, and that to the run."""
    if not argv or argv[0] in ("-h", "--help"):
        from maskshards.train.config.explain import USAGE, help_text

        (sys.stdout if argv else sys.stderr).write(help_text() if argv else USAGE)
        return 0 if argv else 2
    from maskshards.train.distributed.early_stop import stops_told

    with stops_told():
        launch = prepare(argv)
    return launch if isinstance(launch, int) else launch()


def prepare(argv: list[str]) -> Callable[[], int] | int:
    """What does the work, all loaded; or the exit status where it cannot begin."""
    from maskshards.train.config.load import load_config

    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    try:
        config = load_config(argv)
        from maskshards.train.trainer.before_torch import check_early  # only now: it loads numpy

        check_early(config, argv, os.environ)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    # torch logs a warning with a stack of C++ for each failure of the launch's store that it also raises.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from maskshards.train.trainer.launch import launch  # only now: it loads torch and transformers

    return partial(launch, config, argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
