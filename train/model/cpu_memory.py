"""Memory that a training step on a CPU gives back is kept for the next one.

A step frees and asks for the same large blocks thousands of times. glibc returns large blocks to the system
at once, and the system hands out new pages, filled with zeros, at a fault each.
"""

from __future__ import annotations

import ctypes

# words and limits of glibc's <malloc.h>
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST_MMAP_THRESHOLD = 1 << 30
NEVER_TRIM = (1 << 31) - 1


def keep_freed_memory() -> bool:
    """Have glibc keep freed memory for this process from now on; False where another allocator is at work.

    What the process holds then stays at its highest until it ends.
    """
    try:
        change = ctypes.CDLL(None).mallopt
    except (
        AttributeError,
        OSError,
        TypeError,
    ):  # musl has no such function
        return False
    return bool(change(M_MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD) and change(M_TRIM_THRESHOLD, NEVER_TRIM))
