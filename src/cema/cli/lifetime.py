"""A program that another one started ends with it, however its parent ended."""

from __future__ import annotations

import os
import signal
import threading

__all__ = ["stop_on_eof"]


def stop_on_eof() -> None:
    """Send SIGTERM to this process once its standard input ends.

    A parent that holds the other end of the pipe takes its children along even when it is killed: the kernel closes
    the pipe, and no message has to be sent.
    """

    def watch() -> None:
        # os.read, not sys.stdin: a daemon thread inside a buffered reader aborts the interpreter at its end.
        while os.read(0, 4096):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="stop-on-eof", daemon=True).start()
