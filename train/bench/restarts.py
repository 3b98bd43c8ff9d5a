"""`maskshards bench gpu`: watches the process that measures, and starts it again where a part has ended it.

A kernel that reads past its memory, a library that crashes, a call that never returns: each costs its own
part and the seconds of a fresh start, and the parts behind it still run within the budget.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from maskshards.train.bench.gpu_table import markdown, printed
from maskshards.train.bench.journal import FAILED, Journal, Result

WATCHED, FIRST, AGAIN = "--watched", "first", "again"  # said to the process that measures
MODULE = "maskshards.train.bench.gpu"
LOST = 4  # its exit status once the device answers no more
POLL_S = 0.2
LEAST_S = 15.0  # with less of the budget no process is started
LAST_WORDS_S = 5.0  # kept of the budget for the tables
END_S = 30.0  # for the part in hand to end after Ctrl-C


def main(argv: Sequence[str]) -> int:
    """Run the command; 2 for a fault of the user's, told on stderr; 1 where a part failed."""
    options, _ = words().parse_known_args(argv)
    if options.out is None or {"-h", "--help"} & set(argv):
        return passed_on(argv)  # the measuring process knows what to say
    started = time.monotonic()
    journal = Journal(options.out / "gpu.jsonl", anew=False)
    journal.now.unlink(missing_ok=True)
    turn = FIRST
    while True:
        left_s = options.budget_s - (time.monotonic() - started)
        process = measuring([*argv, WATCHED, turn, "--budget-s", str(left_s)])
        killed = watch(process, journal, time.monotonic() + left_s - LAST_WORDS_S)
        if not journal.now.exists():
            return process.returncode or 1  # it measured nothing, and has said why; what was there stays
        again = note(journal, process.returncode, killed)
        if not again or options.budget_s - (time.monotonic() - started) < LEAST_S:
            break
        sys.stderr.write(f"{journal.results[-1].part}: {journal.results[-1].reason}; starting again\n")
        turn = AGAIN
    (options.out / "gpu.md").write_text(markdown(journal.results), encoding="utf-8")
    sys.stdout.write(printed(journal.results, str(journal.path)))
    whole = process.returncode in (0, 1, LOST)
    return int(not whole or any(result.status == FAILED for result in journal.results))


def words() -> argparse.ArgumentParser:
    """What is needed here of the command's options; the measuring process checks them all."""
    made = argparse.ArgumentParser(prog="maskshards bench gpu", add_help=False, allow_abbrev=False)
    made.add_argument("--out", type=Path)
    made.add_argument("--budget-s", type=float, default=540)
    return made


def measuring(argv: Sequence[str]) -> subprocess.Popen[bytes]:
    """The process that measures. `-P`: nothing that lies in this folder runs in place of a library."""
    return subprocess.Popen([sys.executable, "-P", "-m", MODULE, *argv])


def passed_on(argv: Sequence[str]) -> int:
    """What the measuring process says where nothing is to be measured, and its exit status."""
    done = subprocess.run([sys.executable, "-P", "-m", MODULE, *argv], capture_output=True, text=True)
    sys.stdout.write(done.stdout)
    sys.stderr.write(done.stderr)
    return done.returncode


def watch(process: subprocess.Popen[bytes], journal: Journal, deadline: float) -> str:
    """Wait for its end, or end it; why it was ended, '' where it did so by itself."""
    part, since = "", time.monotonic()
    while True:
        try:
            process.wait(POLL_S)
            return ""
        except subprocess.TimeoutExpired:
            pass
        except KeyboardInterrupt:  # the process has heard it too, and notes the part in hand
            return stopped(process)
        now, limit_s = journal.in_hand()
        if now != part:
            part, since = now, time.monotonic()
        spent_s = time.monotonic() - since
        if time.monotonic() < deadline and (limit_s is None or spent_s < limit_s):
            continue
        process.kill()
        process.wait()
        return f"it hung for {spent_s:.0f} s" if time.monotonic() < deadline else "the budget was spent on it"


def stopped(process: subprocess.Popen[bytes]) -> str:
    """Wait for the end of a process that was told to stop."""
    try:
        process.wait(END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    return KeyboardInterrupt.__name__


def note(journal: Journal, code: int, killed: str) -> bool:
    """Write down the part that ended the process, if one did; whether a new one may go on behind it."""
    part, _ = journal.in_hand()
    journal.reread()
    if part:
        ended = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
        journal.add(Result(part, FAILED, 0.0, reason=killed or f"its process ended by {ended}"))
    return (bool(part) or code == LOST) and killed != KeyboardInterrupt.__name__


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
