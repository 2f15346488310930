"""The agent's background threads: a step, a pause, a step again."""

from __future__ import annotations

import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from cema.edge.retry import Backoff, LinkError
from cema.edge.system import uptime
from cema.errors import CemaError

__all__ = ["BackgroundThread", "Clock", "Pause"]

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
    uptime : callable
        What tells this run of the device from others, and the seconds since it began.
    """

    now: Callable[[], float] = time.time
    monotonic: Callable[[], float] = time.monotonic
    wait: Callable[[threading.Event, float | None], bool] = threading.Event.wait
    uptime: Callable[[], tuple[str, float]] = uptime


@dataclass(frozen=True)
class Pause:
    """How long a loop rests: `seconds` (None: until woken), unless it is `wakeable` and notified."""

    seconds: float | None
    wakeable: bool = True


class BackgroundThread(ABC):
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
