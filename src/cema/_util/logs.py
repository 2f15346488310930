"""Logs that a stranger cannot fill a disk with."""

from __future__ import annotations

import json
import logging
import math
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Literal, TypeAlias

__all__ = ["OTHER", "Form", "JsonLines", "Level", "TextLines", "Throttle", "start_logging"]

Form: TypeAlias = Literal["text", "json"]
Level: TypeAlias = Literal["debug", "info", "warning", "error"]
OTHER = "other"
"""The event of what other packages log."""

BURST = 20
PERIOD = 10.0
# Kinds of messages that are counted; messages are constants, so that there are few.
MOST_KINDS = 1000
_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


class Throttle(logging.Filter):
    """Lets the first messages of a kind through, and counts the others until the period is over.

    A kind is what the program wrote into the call: logger, level, the message before its values are put in, and the
    crowd that it was given (`cema._util.events.report`). Details for debugging, and messages with the crowd None, are
    all written.

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
        self._seen: dict[tuple[str, int, str, str], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Tell whether a message is written; one that follows left out ones says how many those were."""
        crowd = getattr(record, "crowd", "")
        if crowd is None or record.levelno <= logging.DEBUG:
            return True
        kind = (record.name, record.levelno, str(record.msg), crowd)
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


class TextLines(logging.Formatter):
    """One message as a line for people: time, process, level, text; a traceback on lines of its own.

    Parameters
    ----------
    who : str
        Such as ``server``.
    """

    def __init__(self, who: str) -> None:
        super().__init__(f"%(asctime)s {who.replace('%', '%%')} %(levelname)s %(message)s")


class JsonLines(logging.Formatter):
    """One message as one line of JSON, for programs.

    Every line has ``time`` (RFC 3339, UTC), ``level``, ``logger``, ``process``, ``event`` and ``message``; then the
    event's fields, and ``exception`` where there is a traceback. What other packages log has the event ``other``.

    Parameters
    ----------
    who : str
        The process, such as ``server``.

    Examples
    --------
    >>> record = logging.LogRecord("x", logging.INFO, "", 0, "from %s", ("a",), None)
    >>> record.created = 0.5
    >>> print(JsonLines("server").format(record))
    {"time": "1970-01-01T00:00:00.500000Z", "level": "INFO", "logger": "x", "process": "server", "event": "other", \
"message": "from a"}
    """

    def __init__(self, who: str) -> None:
        super().__init__()
        self._who = who

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds")
        line: dict[str, Any] = {
            "time": moment.replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "process": self._who,
            "event": getattr(record, "event", OTHER),
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(_finite(line), default=str)


def start_logging(who: str, *, form: Form = "text", level: Level = "info", others: Level = "info") -> None:
    """Log to standard error, throttled; called again, in another form or at another level.

    Parameters
    ----------
    who : str
        Such as ``server``.
    form : {"text", "json"}
        Lines for people or for programs.
    level : {"debug", "info", "warning", "error"}
        What is logged, at least. ``debug`` holds for this package: other packages log their details for their authors.
    others : {"info", "warning", "error"}
        What other packages log, at least, where `level` is below it.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines(who) if form == "json" else TextLines(who))
    handler.addFilter(Throttle())
    logging.basicConfig(
        level=max(logging.INFO, _LEVELS[others], _LEVELS[level]), handlers=[handler], force=True
    )
    logging.getLogger("cema").setLevel(_LEVELS[level])


def _finite(line: dict[str, Any]) -> dict[str, Any]:
    """Replace what JSON has no number for."""
    return {k: str(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in line.items()}
