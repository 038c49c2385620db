"""Keep freed memory for the next step, instead of giving it back to the system each time."""

import ctypes
import sys

__all__ = ["keep_freed_memory"]

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
_ONE_GIB = 1 << 30


def keep_freed_memory() -> bool:
    """Tell glibc's malloc to hold on to large blocks; return whether it agreed.

    By default each tensor above 32 MiB at the most is a mapping of its own: every step then pays
    a page fault for every 4 KiB that it touches. Other C libraries keep their ways.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _ONE_GIB) and mallopt(_TRIM_THRESHOLD, 2 * _ONE_GIB - 1))
