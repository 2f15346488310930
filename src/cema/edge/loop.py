"""The agent's background threads: a step, a pause, a step again; and how long to pause after a failure."""

from __future__ import annotations

import logging
import random
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime

from cema.errors import CemaError

__all__ = ["Backoff", "Clock", "LinkError", "Loop", "Pause", "parse_retry_after"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Clock:
    """Time as the background threads see it; a test passes its own.

    Attributes
    ----------
    now : callable
        Unix seconds: for expiry dates and HTTP dates.
    monotonic : callable
        Seconds that never jump: for measuring pauses.
    wait : callable
        ``wait(event, seconds)``: return when the event is set, or after the seconds (``None``: never).
    """

    now: Callable[[], float] = time.time
    monotonic: Callable[[], float] = time.monotonic
    wait: Callable[[threading.Event, float | None], bool] = threading.Event.wait


class LinkError(CemaError):
    """A request that brought no usable answer.

    Attributes
    ----------
    status : int or None
        The HTTP status; None when no answer came.
    retry_after : float or None
        Seconds the server asked to wait.
    """

    def __init__(self, message: str, *, status: int | None = None, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after

    @property
    def permanent(self) -> bool:
        """Whether repeating the request soon is useless: someone has to change something first."""
        return self.status is not None and 300 <= self.status < 500 and self.status not in {408, 425, 429}


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
        Pause, give or take a half, after an answer that repeating cannot change (401, 403, 404).
    longest : float
        The longest ``Retry-After`` that is believed.
    random : random.Random
        Where the jitter comes from.
    """

    base: float = 1.0
    cap: float = 300.0
    slow: float = 300.0
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
        return self.random.uniform(0, ceiling)


@dataclass(frozen=True)
class Pause:
    """How long a loop rests: `seconds` (None: until woken), unless it is `wakeable` and notified."""

    seconds: float | None
    wakeable: bool = True


class Loop(ABC):
    """A daemon thread that repeats :meth:`step`; a failure pauses it, is logged, and shows in `last_error`.

    Parameters
    ----------
    name : str
        Of the thread; also what `last_error` starts with.
    clock : Clock
    backoff : Backoff
    on_change : callable
        Called without arguments after every step.
    """

    def __init__(self, name: str, *, clock: Clock, backoff: Backoff, on_change: Callable[[], None]) -> None:
        self.clock = clock
        self.backoff = backoff
        self.last_error: str | None = None
        self._name = name
        self._on_change = on_change
        self._closing = threading.Event()
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"cema-{name}", daemon=True)

    @abstractmethod
    def step(self) -> Pause:
        """Do what there is to do now, and say how long to rest."""

    def finish(self) -> None:  # noqa: B027 - most loops have nothing to do at the end
        """Do what must not be left undone; called on the thread after the last step."""

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def notify(self) -> None:
        """Say that there may be something to do."""
        self._wake.set()

    def stop(self) -> None:
        """Ask the thread to end after the step it is in."""
        self._closing.set()
        self._wake.set()

    def join(self, timeout: float) -> bool:
        """Wait for the thread's end; return whether it came."""
        if self._thread.ident is not None:
            self._thread.join(timeout)
        return not self._thread.is_alive()

    @property
    def closing(self) -> bool:
        """Whether :meth:`stop` was called."""
        return self._closing.is_set()

    def failed(self, error: BaseException) -> Pause:
        """Record a failure and return the pause it calls for."""
        self.last_error = f"{self._name}: {error or type(error).__name__}"
        seconds = self.backoff.after(error)
        expected = isinstance(error, CemaError | OSError)
        logger.warning(
            "%s; next attempt in %.1f s", self.last_error, seconds, exc_info=None if expected else error
        )
        return Pause(seconds, wakeable=False)

    def succeeded(self) -> None:
        """Record that things work again."""
        self.backoff.reset()
        self.last_error = None

    def guarded_step(self) -> Pause:
        """Run :meth:`step`; turn an exception into a recorded failure and its pause."""
        try:
            return self.step()
        except Exception as error:
            if self.closing and isinstance(error, LinkError):
                return Pause(0)  # the connection was taken away on purpose
            return self.failed(error)
        finally:
            self._on_change()

    def _run(self) -> None:
        while not self.closing:
            self._wake.clear()
            pause = self.guarded_step()
            if self.closing:
                break
            # A failure's pause is not shortened by new samples: a struggling server is left in peace.
            self.clock.wait(self._wake if pause.wakeable else self._closing, pause.seconds)
        try:
            self.finish()
        except Exception as error:
            self.failed(error)
        finally:
            self._on_change()


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
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - now)
    except (ValueError, OverflowError):
        return None
