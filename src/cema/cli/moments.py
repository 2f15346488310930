"""Durations and moments as people type them."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime

from cema.errors import ConfigError

__all__ = ["duration", "moment"]

_UNITS = {"s": 1, "min": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}
_DURATION = re.compile(rf"([0-9]+(?:\.[0-9]+)?)({'|'.join(_UNITS)})")
_NEVER = "never"
_LAST = datetime(9999, 12, 31, tzinfo=UTC).timestamp()


def duration(text: str, *, option: str) -> float:
    """Return the seconds of a duration such as ``7d``, ``12h``, ``30min``, ``90s`` or ``0``.

    Parameters
    ----------
    text : str
        What was typed.
    option : str
        Where, for the message.

    Raises
    ------
    ConfigError
        It is none.

    Examples
    --------
    >>> duration("7d", option="--overlap"), duration("1.5h", option="--overlap"), duration("0", option="--overlap")
    (604800.0, 5400.0, 0.0)
    """
    if text == "0":
        return 0.0
    found = _DURATION.fullmatch(text)
    if found is None:
        raise ConfigError(f"{option}: expected a duration such as 7d, 12h, 30min, 90s or 0, got {text!r}")
    return float(found[1]) * _UNITS[found[2]]


def moment(text: str, *, option: str, now: float | None = None) -> float | None:
    """Return the unix seconds of a date, a time of a date, or a duration from now; None for ``never``.

    Parameters
    ----------
    text : str
        ``2027-01-01`` (its first moment), ``2027-01-01T12:00`` or ``2027-01-01T12:00+02:00``, in UTC unless it says
        otherwise; or ``90d``, as `duration` takes it.
    option : str
        Where it was typed, for the message.
    now : float, optional
        Unix seconds; the clock's when None.

    Raises
    ------
    ConfigError
        It is none of these, or not after now.

    Examples
    --------
    >>> moment("2027-01-01", option="--at", now=0.0), moment("2027-01-01T02:00+02:00", option="--at", now=0.0)
    (1798761600.0, 1798761600.0)
    >>> moment("90d", option="--at", now=10.0), moment("never", option="--at")
    (7776010.0, None)
    """
    if text == _NEVER:
        return None
    now = time.time() if now is None else now
    if _DURATION.fullmatch(text):
        at = now + duration(text, option=option)
    else:
        try:
            parsed = datetime.fromisoformat(text)
        except ValueError:
            raise ConfigError(
                f"{option}: expected a date such as 2027-01-01 or 2027-01-01T12:00, a duration such as 90d, or never, "
                f"got {text!r}"
            ) from None
        at = (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp()
    if at >= _LAST:
        raise ConfigError(f"{option}: expected a moment before the year 10000, or never, got {text!r}")
    if at <= now:
        raise ConfigError(
            f"{option}: expected a moment after now, got {text!r}; to end a token now, revoke it"
        )
    return at
