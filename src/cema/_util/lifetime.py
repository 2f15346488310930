"""A program that another one started ends with it, however its parent ended."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable

__all__ = ["count_lines", "on_eof", "stop_on_eof"]


def on_eof(act: Callable[[], object], lines: Callable[[int], object] = lambda _count: None) -> None:
    """Call a function, on a thread of its own, once this process's standard input ends.

    A parent that holds the other end of the pipe takes its children along even when it is killed: the kernel closes
    the pipe, and no message has to be sent.

    Parameters
    ----------
    act : callable
        What to do then; called at most once.
    lines : callable, optional
        Called with the number of lines that ended, each time that some did.
    """

    def watch() -> None:
        # os.read, not sys.stdin: a daemon thread inside a buffered reader aborts the interpreter at its end.
        while data := os.read(0, 4096):
            if count := data.count(b"\n"):
                lines(count)
        act()

    threading.Thread(target=watch, name="on-eof", daemon=True).start()


def stop_on_eof() -> None:
    """Send SIGTERM to this process once its standard input ends."""
    on_eof(_terminate)


def count_lines() -> threading.Semaphore:
    """Return a semaphore that each line of standard input releases once; stop as `stop_on_eof` does.

    Returns
    -------
    threading.Semaphore
        At 0 now: a parent process says by a line that its child may do the next piece of work.
    """
    permits = threading.Semaphore(0)
    on_eof(_terminate, permits.release)
    return permits


def _terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)
