"""A checked configuration to a run's end: join the ranks, run, and say in a status how it went."""

from __future__ import annotations

import logging
import signal
import traceback
from collections.abc import Sequence

import torch

from maskshards.train.config.schema import TrainConfig
from maskshards.train.distributed.early_stop import AGAIN, Stopped
from maskshards.train.distributed.heartbeat import one_line
from maskshards.train.distributed.process_end import last_words, say
from maskshards.train.distributed.ranks import joined_for
from maskshards.train.distributed.stop_signals import StopSignals
from maskshards.train.losses.nonfinite import NonFiniteError
from maskshards.train.trainer.guards import GuardError
from maskshards.train.trainer.run import run

STOPPED, FAULT = 1, 2


def launch(config: TrainConfig, words: Sequence[str] = ()) -> int:
    """Do what `config` asks for on every rank of the launch.

    Returns the exit status, with what went wrong on stderr. `words` are those of the command line that
    `config` was made from.

    0 done, 1 training had to stop (also for a fault of the program itself, whose traceback stands before the
    last line), 2 a fault of the user's, 128 + n stopped by signal n after saving, or before there was
    anything to save, 130 also for a second Ctrl-C, which does not wait for that.
    """
    try:
        with StopSignals(joining=True) as stop, joined_for(config) as ranks, stop.noted():
            logging.getLogger("maskshards.train").setLevel(logging.INFO if ranks.is_first else logging.ERROR)
            line = run(config, ranks, stop, words)
            if ranks.is_first:
                say(line, "stdout")
    except Stopped as stopped:
        resumable = stopped.begun and config.load_from is None
        say(f"{stopped}{'; resume_from=auto continues' if resumable else AGAIN}")
        return stopped.status
    except KeyboardInterrupt as error:  # the second
        told = "interrupted before the step in hand was saved"
        last_words(f"{told}{where(error)}; resume_from=auto goes on from the newest checkpoint")
        return 128 + signal.SIGINT
    except (ValueError, OSError) as error:
        last_words(f"error: {error}{where(error)}")
        return FAULT
    except (NonFiniteError, GuardError) as error:
        last_words(f"stopped: {error}")
        return STOPPED
    except Exception as error:
        words = one_line(error) or "it said no more"
        if is_of_memory(error):
            last_words(
                f"error: out of memory ({words}){where(error)}; less is needed with a smaller bs (the global "
                "batch stays), crop or decoder_head.hidden_dim, or with activation_checkpointing=True"
            )
            return FAULT
        traceback.print_exc()
        last_words(
            f"error: {type(error).__name__}: {words}{where(error)}; a fault of the program itself: please "
            "report it with the lines above"
        )
        return STOPPED
    return 0


def where(error: BaseException) -> str:
    """Which rank an error came to, and what it did; empty for one that all have, and for a single process."""
    return "".join(f" ({note})" for note in getattr(error, "__notes__", [])[:1])


def is_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, of the host or of a GPU.

    torch's own error for the host is of no type of its own.
    """
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)
