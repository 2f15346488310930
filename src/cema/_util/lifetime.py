"""A program that another one started ends with it, however its parent ended."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable

__all__ = ["on_eof", "stop_on_eof"]


def on_eof(act: Callable[[], object]) -> None:
    """Call a function, on a thread of its own, once this process's standard input ends.

    A parent that holds the other end of the pipe takes its children along even when it is killed: the kernel closes
    the pipe, and no message has to be sent.

    Parameters
    ----------
    act : callable
        What to do then; called at most once.
    """

    def watch() -> None:
        # os.read, not sys.stdin: a daemon thread inside a buffered reader aborts the interpreter at its end.
        while os.read(0, 4096):
            pass
        act()

    threading.Thread(target=watch, name="on-eof", daemon=True).start()


def stop_on_eof() -> None:
    """Send SIGTERM to this process once its standard input ends."""
    on_eof(lambda: os.kill(os.getpid(), signal.SIGTERM))
