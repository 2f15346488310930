"""How a process that computes is set up: what a pass has used of memory is kept for the next one.

A pass allocates gigabytes in large tensors and lets them go. By default glibc gives each back to the kernel, which
hands out zeroed pages again one by one in the next pass: with EfficientNet-Lite0 that took more time than the
computation, in training and in prediction.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Mapping

__all__ = ["keep_freed_memory", "worker_environment"]

# From malloc.h: mallopt's parameters.
M_TRIM_THRESHOLD = -1
M_MMAP_MAX = -4
HUGE_PAGES = "glibc.malloc.hugetlb=1"


def keep_freed_memory() -> bool:
    """Let this process keep memory that was freed, for tensors of any size.

    Returns
    -------
    bool
        False where the C library is another one, or the user has set MALLOC_ variables of his own; nothing changed
        then.
    """
    if sys.platform != "linux" or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    # No tensor in a mapping of its own, and nothing given back at the end of the heap.
    return bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, -1))


def worker_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment for a worker's process: huge pages for what malloc takes, and OpenMP threads that sleep.

    Threads that wait spin by default. On a machine whose cores are busy otherwise they spin in each other's way: a step
    of two threads was measured eight times slower than with threads that sleep.

    Parameters
    ----------
    environment : mapping of str to str
        The parent's. What it sets stays as it is.

    Examples
    --------
    >>> worker_environment({"GLIBC_TUNABLES": "glibc.malloc.check=3"})
    {'OMP_WAIT_POLICY': 'PASSIVE', 'GLIBC_TUNABLES': 'glibc.malloc.check=3'}
    """
    return {"OMP_WAIT_POLICY": "PASSIVE", "GLIBC_TUNABLES": HUGE_PAGES, **environment}
