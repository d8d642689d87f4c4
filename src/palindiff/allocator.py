"""Memory that a process frees and soon needs again: glibc's allocator, set to keep it.

Here: the setting. Not here: who needs it, which is training and embedding on a CPU.
"""

import ctypes
import os
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt, with the largest values that it takes
KEPT_BYTES, LARGEST_MMAP_THRESHOLD = 2**31 - 1, 2**25


def keep_freed_memory() -> None:
    """Let glibc reuse freed memory instead of returning it to the system, where each layer faults it in again.

    Does nothing with another C library, or where environment variables set glibc's allocator.
    """
    if sys.platform != "linux" or any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
        libc.mallopt(M_MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD)
