"""`maskshards build|finish|verify|scenes|bench build`: from a data set to shards, and back to compare.

Faults of the input, the settings or the disk are told in one block on stderr, exit status 2; Ctrl-C and
SIGTERM stop all workers, remove what is half-written and exit with 130 and 143. The same command then goes
on from there.
"""

from __future__ import annotations

import os
import signal
import sys

from maskshards.preprocess.arguments import parser
from maskshards.preprocess.commands import COMMANDS
from maskshards.preprocess.errors import BuildError
from maskshards.shards.errors import ShardError, error_text


def main(arguments: list[str]) -> int:
    """Run one command; the exit status."""
    args = parser().parse_args(arguments)
    before = signal.signal(signal.SIGTERM, _terminated)
    try:
        told = COMMANDS[args.command](args)
        _show(told)
    except (BuildError, ShardError, OSError) as error:
        print(f"error: {error_text(error)}", file=sys.stderr)
        return 2
    except MemoryError as error:
        print(f"error: memory does not suffice ({error}); give fewer --workers", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)
    return 0


def _show(text: str) -> None:
    """Print, to a reader such as `head` that may have seen enough."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _terminated(number: int, frame: object) -> None:
    """Unwind like Ctrl-C, so that workers are stopped and scratch files removed."""
    raise SystemExit(128 + number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
