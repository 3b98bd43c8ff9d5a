"""What a process asks of the system: a folder, names and streams to work with, an end with its parent."""

from __future__ import annotations

import os
import sys

from maskshards.shards.errors import StoreError

PR_SET_PDEATHSIG = 1  # Linux: a signal for this process when its parent dies


def check_working_folder() -> None:
    """StoreError where it was deleted: libraries fail there in words about other files."""
    try:
        os.getcwd()
    except FileNotFoundError as error:
        raise StoreError("the working folder was deleted; cd into one that exists") from error


def check_names() -> None:
    """StoreError where file names are not taken as UTF-8: keys of samples would depend on the locale."""
    if (encoding := sys.getfilesystemencoding()) != "utf-8":
        raise StoreError(
            f"file names are taken as {encoding} here, not as UTF-8; set PYTHONUTF8=1, or a locale such as "
            "LC_ALL=C.UTF-8, and run the same command again"
        )


def open_closed_streams() -> None:
    """Let closed standard streams lead nowhere.

    Else the first files that are opened take their descriptors, and hold what a library writes to its
    standard error.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free is this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w" if number else "r", closefd=False))


def die_with_parent() -> None:
    """On Linux, end by SIGKILL when the parent dies: whoever is killed can end nobody."""
    if sys.platform == "linux":
        import ctypes  # not by every start of a command
        import signal

        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
