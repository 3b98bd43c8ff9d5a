"""What a process asks of the system: a working folder that is there, an end with its parent."""

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


def die_with_parent() -> None:
    """On Linux, end by SIGKILL when the parent dies: whoever is killed can end nobody."""
    if sys.platform == "linux":
        import ctypes  # not by every start of a command
        import signal

        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
