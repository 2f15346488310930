"""What the agent asks of the operating system: a thread behind all else, free memory, how long the device runs."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import time
from collections.abc import Callable
from functools import cache
from typing import TypeVar

__all__ = ["return_free_memory", "run_behind", "uptime"]

T = TypeVar("T")
_LEAST_PRIORITY = 19
_PROCESS = os.urandom(16).hex()


def run_behind(call: Callable[[], T]) -> T:
    """Call a function on a thread that runs when nothing else of the device wants the core, and wait for it.

    On systems other than Linux, where the priority is the whole process's, it runs like any other.

    Parameters
    ----------
    call : callable
        Without arguments. Threads that it starts have the low priority too, for as long as they live: nobody but an
        administrator may raise a priority again.

    Returns
    -------
    object
        What it returns; what it raises is raised here.

    Examples
    --------
    >>> run_behind(lambda: 1 + 1)
    2
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            if sys.platform == "linux":  # there a thread has a priority of its own
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LEAST_PRIORITY)
            results.append(call())
        except BaseException as error:
            errors.append(error)

    # A daemon: a build that gets no time from a busy device does not keep the program from ending.
    thread = threading.Thread(target=work, name="cema-behind", daemon=True)
    thread.start()
    thread.join()
    if errors:
        raise errors.pop()
    return results.pop()


def return_free_memory() -> None:
    """Give what was freed back to the system, where the C library keeps it and can be asked.

    Building a session takes, for a moment, several times the model's size in pieces that glibc would hold on to.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def uptime() -> tuple[str, float]:
    """Return what tells this run of the device from others, and the seconds since it began, sleep included.

    On systems other than Linux a run is that of the process.

    Returns
    -------
    (str, float)
    """
    boot = _boot_id()
    return (boot, time.clock_gettime(time.CLOCK_BOOTTIME)) if boot else (_PROCESS, time.monotonic())


@cache
def _boot_id() -> str:
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip() if hasattr(time, "CLOCK_BOOTTIME") else ""
    except (OSError, ValueError):
        return ""
