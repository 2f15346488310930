"""How much a device may send now, and when again: limits over sliding windows, and quiet hours."""

from __future__ import annotations

import logging
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

from cema._util.files import keep_private, write_atomic
from cema._util.toml import shown
from cema.edge.background import Clock
from cema.edge.budget_config import BudgetConfig
from cema.edge.budget_ledger import SLOTS, WINDOWS, Ledger, Moment, What
from cema.edge.quiet_hours import QuietHours
from cema.edge.status import BudgetStatus, LimitStatus
from cema.errors import FormatError, SpoolError

__all__ = ["Budget", "Room", "Wait"]

logger = logging.getLogger(__name__)

_QUIET = "quiet_hours"
_UNITS = ((10**9, "GB"), (10**6, "MB"), (10**3, "kB"))
_PLENTY = sys.maxsize


class Room(NamedTuple):
    """What may be sent in one request now: bytes of its body, and samples."""

    bytes: int
    samples: int


class Wait(NamedTuple):
    """How many seconds a request has to wait, and for which limit."""

    seconds: float
    reason: str


class _Limit(NamedTuple):
    name: str
    what: What
    window: str
    allowed: int


class Budget:
    """What may be sent, and what was; see `cema.edge.budget_ledger` for the windows and for clocks that jump.

    What counts is the body of a request, not its headers, and not what comes back. Each request is charged before it is
    sent, and the charge is on the disk then: whatever becomes of the process, no limit is ever exceeded. A request
    that did not get as far as sending its body costs nothing.

    One thread may charge and settle; any thread may ask. Somebody should `look` from time to time, so that a clock that
    is set is noticed while nothing is sent.

    Parameters
    ----------
    config : BudgetConfig
    path : Path
        The file that remembers what was sent; created when absent. One that cannot be read counts as one by which
        all limits are used up now.
    clock : Clock
    """

    def __init__(self, config: BudgetConfig, path: Path, clock: Clock) -> None:
        self._path, self._clock = path, clock
        self._limits = [_limit(name, allowed) for name, allowed in config.limits.items()]
        self._quiet = QuietHours(config.quiet_hours, config.quiet_clock)
        self._lock = threading.Lock()  # never held over a write
        self._writing = threading.Lock()  # what is on the disk is never older than what was there before
        self._denied: tuple[int, int] | None = None  # the request that waits, if one does
        self._clock_was_set = False  # and the disk does not know
        keep_private(path)
        self._ledger = self._load()
        if self._ledger.interrupted:  # else the next restart would count that request from then on
            self._try_to_write()

    @property
    def largest(self) -> int:
        """Bytes that a request may ever have: no window allows more."""
        return min((limit.allowed for limit in self._limits if limit.what == "bytes"), default=_PLENTY)

    def look(self) -> None:
        """Take note of the clocks, and write down that the wall clock was set, if it was."""
        self._advance()

    def room(self) -> Room:
        """Return what may be sent in one request now; nothing of either in quiet hours."""
        moment = self._advance()
        with self._lock:
            if self._quiet.left(moment.wall):
                return Room(0, 0)
            return Room(self._left("bytes"), self._left("samples"))

    def wait(self, size: int, samples: int = 1) -> Wait | None:
        """Say how long a request has to wait; None when it may be sent now.

        The status tells of it until something is charged, or `relax` is called.

        Parameters
        ----------
        size : int
            Bytes of its body, at most `largest`.
        samples : int, default 1
        """
        moment = self._advance()
        with self._lock:
            found = self._wait(moment, size, samples)
            self._denied = None if found is None else (size, samples)
            return found

    def relax(self) -> None:
        """Forget that a request waits: there is none any more."""
        with self._lock:
            self._denied = None

    def charge(self, size: int, samples: int) -> bool:
        """Count a request that is about to be sent, durably; call `settle` or `cancel` when it has ended.

        Parameters
        ----------
        size : int
            Bytes of its body.
        samples : int

        Returns
        -------
        bool
            Whether it may be sent; nothing is counted otherwise.

        Raises
        ------
        SpoolError
            When the disk refuses: then it may not be sent.
        """
        moment = self._advance()
        with self._lock:
            if self._wait(moment, size, samples) is not None:
                return False
            self._ledger.begin(size, samples)
        try:
            self._write()
        except SpoolError:
            with self._lock:
                self._ledger.end(sent=False)
            raise
        self.relax()
        return True

    def settle(self) -> None:
        """Count the request as sent until now."""
        self._advance()
        with self._lock:
            self._ledger.end()
        self._try_to_write()

    def cancel(self) -> None:
        """Take a charge back: nothing of the request's body was sent."""
        with self._lock:
            self._ledger.end(sent=False)
        self._try_to_write()

    def status(self) -> BudgetStatus:
        """Say how the limits are used, without waiting for anything."""
        moment = self._moment()
        with self._lock:
            self._clock_was_set |= self._ledger.advance(moment)
            waits = None if self._denied is None else self._wait(moment, *self._denied)
            reason = None if waits is None else waits.reason
            limits = {limit.name: self._limit_status(limit, reason) for limit in self._limits}
        until = None if waits is None else moment.wall + waits.seconds
        words = [_in_words(limit, limits[limit.name]) for limit in self._limits]
        if until is not None:
            words.append(f"waits for {reason} until {_utc(until)}")
        text = "; ".join(words) or "nothing waits for quiet hours"
        return BudgetStatus(limits=limits, waits_for=reason, waits_until=until, text=text)

    def _limit_status(self, limit: _Limit, waits_for: str | None) -> LimitStatus:
        ledger, seconds = self._ledger, WINDOWS[limit.window]
        recent = min(max(ledger.time, seconds / SLOTS), seconds / 4)
        projected = round(ledger.used(limit.window, limit.what, recent) * seconds / recent)
        return LimitStatus(
            used=ledger.used(limit.window, limit.what),
            allowed=limit.allowed,
            projected=projected,
            on_course=projected <= limit.allowed and waits_for != limit.name,
        )

    def _left(self, what: What) -> int:
        left = [
            limit.allowed - self._ledger.used(limit.window, what)
            for limit in self._limits
            if limit.what == what
        ]
        return max(0, min(left, default=_PLENTY))

    def _wait(self, moment: Moment, size: int, samples: int) -> Wait | None:
        longest, reason = 0.0, _QUIET
        for limit in self._limits:
            most = limit.allowed - (size if limit.what == "bytes" else samples)
            seconds = self._ledger.free_in(limit.window, limit.what, most)
            if seconds > longest:
                longest, reason = seconds, limit.name
        quiet = self._quiet.left(moment.wall + longest)
        return Wait(longest + quiet, _QUIET if quiet else reason) if longest + quiet else None

    def _moment(self) -> Moment:
        return Moment(self._clock.now(), *self._clock.uptime())

    def _advance(self) -> Moment:
        moment = self._moment()
        with self._lock:
            self._clock_was_set |= self._ledger.advance(moment)
            write = self._clock_was_set
        if write:
            self._try_to_write()
        return moment

    def _try_to_write(self) -> None:
        """Write down what only costs budget when it is forgotten; the next charge writes it, or fails."""
        try:
            self._write()
        except SpoolError as error:
            logger.warning("%s", error)

    def _write(self) -> None:
        with self._writing:
            with self._lock:
                data, self._clock_was_set = self._ledger.dump(), False
            try:
                self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                write_atomic(self._path, data, mode=0o600)
            except OSError as error:
                raise SpoolError(
                    f"{shown(self._path)} cannot be written: {error}; nothing is sent until it can, since the budget "
                    "would be forgotten; check the disk's space and health"
                ) from error

    def _load(self) -> Ledger:
        moment = self._moment()
        try:
            return Ledger(moment, self._path.read_bytes())
        except FileNotFoundError:
            return Ledger(moment)
        except (OSError, FormatError) as error:
            logger.error(
                "%s cannot be read: all limits count as used up now; remove it for a new budget: %s",
                shown(self._path),
                error,
            )
        ledger = Ledger(moment)
        for limit in self._limits:
            ledger.add(*((limit.allowed, 0) if limit.what == "bytes" else (0, limit.allowed)), limit.window)
        return ledger


def _limit(name: str, allowed: int) -> _Limit:
    what, _, window = name.partition("_per_")
    return _Limit(name, "bytes" if what == "bytes" else "samples", window, allowed)


def _in_words(limit: _Limit, status: LimitStatus) -> str:
    unit, name = 1, str(limit.what)
    if limit.what == "bytes":
        unit, name = next(((unit, name) for unit, name in _UNITS if limit.allowed >= unit), (1, "bytes"))
    used, allowed, projected = (_short(n / unit) for n in (status.used, status.allowed, status.projected))
    course = "on course" if status.on_course else f"{projected} at this rate"
    return f"{used} of {allowed} {name} this {limit.window}, {course}"


def _short(number: float) -> str:
    return f"{number:.1f}".removesuffix(".0")


def _utc(seconds: float) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))
    except (ValueError, OverflowError, OSError):  # a device's clock may say anything
        return f"{seconds:.0f} s after 1970"
