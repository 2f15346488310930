"""Logs that a stranger cannot fill a disk with."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

__all__ = ["Throttle", "start_logging"]

BURST = 20
PERIOD = 10.0
# Kinds of messages that are counted; messages are constants, so that there are few.
MOST_KINDS = 1000


class Throttle(logging.Filter):
    """Lets the first messages of a kind through, and counts the others until the period is over.

    A kind is what the program wrote into the call: logger, level, and the message before its values are put in.

    Parameters
    ----------
    burst : int
        Messages of one kind in a period.
    period : float
        Seconds.
    clock : callable
        Seconds that never go back.

    Examples
    --------
    >>> throttle = Throttle(burst=1)
    >>> record = logging.LogRecord("x", logging.INFO, "", 0, "from %s", ("a",), None)
    >>> throttle.filter(record), throttle.filter(record)
    (True, False)
    """

    def __init__(
        self, burst: int = BURST, period: float = PERIOD, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__()
        self._burst = burst
        self._period = period
        self._clock = clock
        self._lock = threading.Lock()
        self._seen: dict[tuple[str, int, str], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Tell whether a message is written; one that follows left out ones says how many those were."""
        kind = (record.name, record.levelno, str(record.msg))
        now = self._clock()
        with self._lock:
            begin, count = self._seen.get(kind, (now, 0))
            left_out = 0
            if now - begin >= self._period:
                left_out = max(0, count - self._burst)
                begin, count = now, 0
            if kind not in self._seen and len(self._seen) >= MOST_KINDS:
                self._seen.clear()
            self._seen[kind] = (begin, count + 1)
        if left_out:
            record.msg = f"{record.getMessage()} ({left_out} more of this kind were left out)"
            record.args = None
        return count < self._burst


def start_logging(who: str) -> None:
    """Log to standard error, throttled, with the time and who it is.

    Parameters
    ----------
    who : str
        Such as ``server``.
    """
    logging.basicConfig(level=logging.INFO, format=f"%(asctime)s {who} %(levelname)s %(message)s")
    throttle = Throttle()
    for handler in logging.getLogger().handlers:
        handler.addFilter(throttle)
