"""What a process that trains does with the memory of tensors that it has freed."""

from __future__ import annotations

import ctypes
import functools
import os
import sys

TRIM_THRESHOLD, MMAP_MAX = -1, -4
"""Parameters of glibc's mallopt(3), which its header numbers so."""


@functools.cache
def keep_freed_memory() -> None:
    """Have this process keep what it frees, for the next step to use again.

    A step frees all that it has allocated. glibc gives large pieces back to the system, and the next step pays for each
    page anew as it first touches it: a tenth and more of a step on a CPU. The process now holds its peak until it ends.
    Nothing is done where libc is not glibc, or whoever started the process has told it what to do (MALLOC_..._).
    """
    told = any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" and not told else None
    if mallopt is not None:
        mallopt(TRIM_THRESHOLD, -1)
        mallopt(MMAP_MAX, 0)
