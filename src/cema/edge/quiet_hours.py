"""Times of the day at which a device sends nothing."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from typing import Literal

__all__ = ["QuietHours"]

_DAY = 24 * 60
_RANGE = re.compile(r"([0-9]{2}):([0-9]{2})-([0-9]{2}):([0-9]{2})")


class QuietHours:
    """Ranges of the day, to the minute; a range may pass midnight.

    Parameters
    ----------
    ranges : sequence of str
        Each ``HH:MM-HH:MM``; the first minute is in it, the last is not.
    clock : {"local", "utc"}, default "local"
        Whose time of day: the device's own time zone, or UTC.

    Raises
    ------
    ValueError
        If a range is not written so, is empty, or all ranges together leave no minute of the day.

    Examples
    --------
    >>> quiet = QuietHours(["22:00-06:30"], "utc")
    >>> quiet.left(23 * 3600), quiet.left(6.75 * 3600)
    (27000.0, 0.0)
    """

    def __init__(self, ranges: Sequence[str], clock: Literal["local", "utc"] = "local") -> None:
        self._time = time.gmtime if clock == "utc" else time.localtime
        quiet = [False] * _DAY
        for text in ranges:
            start, end = _minutes(text)
            for minute in range(start, end if end > start else end + _DAY):
                quiet[minute % _DAY] = True
        if all(quiet):
            raise ValueError(
                f"quiet_hours: expected some time of the day in which samples may be sent, got {list(ranges)}; "
                "shorten the ranges"
            )
        # For each minute how many quiet ones follow, itself included; twice around, since a range may pass midnight.
        self._left = [0] * (2 * _DAY + 1)
        for minute in reversed(range(2 * _DAY)):
            self._left[minute] = self._left[minute + 1] + 1 if quiet[minute % _DAY] else 0

    def left(self, now: float) -> float:
        """Return the seconds until something may be sent; 0 outside the ranges.

        Parameters
        ----------
        now : float
            Unix seconds.
        """
        moment = self._time(now)
        left = self._left[60 * moment.tm_hour + moment.tm_min]
        return 60.0 * left - moment.tm_sec - now % 1.0 if left else 0.0


def _minutes(text: str) -> tuple[int, int]:
    found = _RANGE.fullmatch(text)
    if found is not None:
        hours, minutes, end_hours, end_minutes = map(int, found.groups())
        start, end = 60 * hours + minutes, 60 * end_hours + end_minutes
        if max(minutes, end_minutes) < 60 and start < _DAY and end <= _DAY and start != end % _DAY:
            return start, end
        if (start, end) == (0, _DAY):
            return start, end
    raise ValueError(
        f'quiet_hours: expected a range of the day such as "08:00-18:00" or "22:00-06:00", got {text!r}'
    )
