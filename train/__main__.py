"""`maskshards train config=RECIPE.yaml output_dir=... datasets.root=... key=value ...`, alone or under
torchrun or srun.
"""

from __future__ import annotations

import logging
import signal
import sys
from datetime import timedelta

from maskshards.train.config.load import load_config
from maskshards.train.distributed.ranks import joined
from maskshards.train.distributed.stop_signals import Stopped, StopSignals
from maskshards.train.losses.nonfinite import NonFiniteError
from maskshards.train.trainer.guards import GuardError
from maskshards.train.trainer.run import run

USAGE = """usage: maskshards train config=RECIPE.yaml output_dir=FOLDER datasets.root=SHARDS
model.dino_hub=NAME [key=value ...] recipes: configs/*.yaml; load_from=CHECKPOINT evaluates,
init_from=CHECKPOINT and resume_from=auto train"""


def main(argv: list[str]) -> int:
    """Exit status: 0 done, 2 a fault of the user's (one block on stderr), 128 + n stopped by signal n after
    saving.
    """
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE, file=sys.stdout if argv else sys.stderr)
        return 0 if argv else 2
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    try:
        config = load_config(argv)
        with joined(step_timeout=timedelta(seconds=config.step_timeout_s)) as ranks, StopSignals() as stop:
            logging.getLogger("maskshards.train").setLevel(logging.INFO if ranks.is_first else logging.ERROR)
            line = run(config, ranks, stop)
            if ranks.is_first:
                print(line)
    except Stopped as stopped:
        print(f"{stopped}; resume_from=auto continues", file=sys.stderr)
        return 128 + stopped.number
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (NonFiniteError, GuardError) as error:
        print(f"stopped: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return 0


def evaluate_main(argv: list[str]) -> int:
    """`maskshards evaluate`: the same words, of which `load_from=` must be one."""
    if argv and argv[0] not in ("-h", "--help") and not any(one.startswith("load_from=") for one in argv):
        print("error: load_from= is missing: say which weights are to be scored", file=sys.stderr)
        return 2
    return main(argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
