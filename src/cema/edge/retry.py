"""What a request that failed means, and how long to wait before the next one."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from cema.errors import CemaError

__all__ = ["Backoff", "LinkError", "parse_retry_after"]


class LinkError(CemaError):
    """A request that brought no usable reply.

    Attributes
    ----------
    status : int or None
        The HTTP status; None when no reply came.
    retry_after : float or None
        Seconds the server asked to wait.
    soon : bool
        Whether something else answered in the cloud's place, which may go away at any moment and is not harmed
        by one more request.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        retry_after: float | None = None,
        soon: bool = False,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after
        self.soon = soon

    @property
    def permanent(self) -> bool:
        """Whether repeating the request soon is useless: someone has to change something first."""
        return self.status is not None and 400 <= self.status < 500 and self.status not in {408, 425, 429}


@dataclass
class Backoff:
    """Exponential backoff with full jitter: ``uniform(0, min(cap, base * 2**failures))`` seconds.

    Full jitter spreads a fleet that lost its cloud at one moment evenly over the whole interval, so that it
    does not come back as one wave (M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog,
    2015).

    Parameters
    ----------
    base, cap : float
        Seconds.
    slow : float
        Pause, give or take a half, after a reply that repeating cannot change (401, 403, 404).
    soon : float
        The longest pause after an answer that was not the cloud's (a redirect, the login page of a network).
    longest : float
        The longest ``Retry-After`` that is believed.
    random : random.Random
        Where the jitter comes from.
    """

    base: float = 1.0
    cap: float = 300.0
    slow: float = 300.0
    soon: float = 30.0
    longest: float = 3600.0
    random: random.Random = field(default_factory=random.Random)
    failures: int = 0

    def reset(self) -> None:
        """Forget past failures, after a success."""
        self.failures = 0

    def after(self, error: BaseException) -> float:
        """Return the seconds to wait after one more failure.

        Parameters
        ----------
        error : BaseException
            A :class:`LinkError` may carry the server's own wish, which is a lower bound.
        """
        ceiling = min(self.cap, self.base * 2 ** min(self.failures, 60))
        self.failures += 1
        if isinstance(error, LinkError) and error.retry_after is not None:
            return min(error.retry_after, self.longest) + self.random.uniform(0, self.base)
        if isinstance(error, LinkError) and error.permanent:
            return self.random.uniform(self.slow / 2, self.slow)
        if isinstance(error, LinkError) and error.soon:
            ceiling = min(ceiling, self.soon)
        return self.random.uniform(0, ceiling)


def parse_retry_after(value: str | None, now: float) -> float | None:
    """Read a ``Retry-After`` header (RFC 9110, section 10.2.3): seconds, or an HTTP date.

    Parameters
    ----------
    value : str or None
    now : float
        Unix seconds.

    Returns
    -------
    float or None
        Seconds from now, at least 0; None when there is no header or it cannot be read.

    Examples
    --------
    >>> parse_retry_after("120", now=0.0)
    120.0
    >>> parse_retry_after("Thu, 01 Jan 1970 00:01:00 GMT", now=30.0)
    30.0
    >>> parse_retry_after("soon", now=0.0) is None
    True
    """
    if value is None:
        return None
    text = value.strip()
    if text.isascii() and text.isdigit():
        return float(text)
    from email.utils import parsedate_to_datetime  # noqa: PLC0415 - slow to load, and dates are rare

    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - now)
    except (ValueError, TypeError, IndexError, OverflowError, OSError):  # as the parts of a date may be wrong
        return None
