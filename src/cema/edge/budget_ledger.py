"""What was sent in the last hour, day and month, by a clock that cannot be set back.

Clocks of devices jump: some say 1970 until they are set, some are set by hand. So a ledger has a time of its own:

* While the device runs, also over restarts of the program, it goes with the time since the device was switched on.
  That time does not depend on the wall clock, which may say anything.
* While the device is switched off, only the wall clock knows how long. The ledger's time goes on by as much as the wall
  clock is ahead of all that it ever said (the time that the device ran since then added), never back.
* What the wall clock says before 2020 is no time: it was not set yet. When it is set, nothing is gained.

So the sums hold over any window in which the device is not switched off, whatever the wall clock does, and over all
others where the wall clock is not further ahead after the device was off than before. A wall clock that jumps ahead
while the device is off opens the budget once: it gains nothing more until real time has caught up with it. No jump
locks it: all is free again after 30 days in which the device runs.
"""

from __future__ import annotations

from collections import deque
from typing import Annotated, Literal, NamedTuple

import msgspec

from cema.errors import FormatError

__all__ = ["SLOTS", "WINDOWS", "Ledger", "Moment", "What"]

What = Literal["bytes", "samples"]

WINDOWS = {"hour": 3600, "day": 24 * 3600, "month": 30 * 24 * 3600}
"""Seconds of the windows."""
SLOTS = 60
"""Parts of a window in which what was sent is summed up."""

_CLOCK_SET = 1_577_836_800.0  # 2020-01-01: a wall clock before it was not set
_STEP_SECONDS = 60.0  # by which a wall clock was set, and did not drift

_Count = Annotated[int, msgspec.Meta(ge=0)]
_Slot = tuple[_Count, _Count, _Count]  # its number, bytes, samples


class Moment(NamedTuple):
    """What the device's clocks say.

    Attributes
    ----------
    wall : float
        Unix seconds.
    boot : str
        What tells this run of the device from others.
    uptime : float
        Seconds since it was switched on.
    """

    wall: float
    boot: str
    uptime: float


class _Stored(msgspec.Struct, frozen=True, kw_only=True):
    format: Literal["cema.budget/1"] = "cema.budget/1"
    time: Annotated[float, msgspec.Meta(ge=0)]
    wall: float
    boot: str
    uptime: float
    pending: tuple[_Count, _Count]
    slots: dict[str, list[_Slot]]


class _Window:
    """Sums of one window, slot by slot; the newest last."""

    def __init__(self, seconds: int) -> None:
        self.seconds, self.slot = seconds, seconds // SLOTS
        self.slots: deque[_Slot] = deque()

    def add(self, time: float, size: int, samples: int) -> None:
        number = int(time // self.slot)
        if self.slots and self.slots[-1][0] == number:
            _, before, count = self.slots.pop()
            size, samples = size + before, samples + count
        self.slots.append((number, size, samples))
        while self.slots[0][0] < number - SLOTS - 1:
            self.slots.popleft()

    def ends(self, slot: _Slot) -> float:
        """Return when a slot's last moment leaves the window."""
        return (slot[0] + 1) * self.slot + self.seconds


class Ledger:
    """Sums of what was sent, over sliding windows, in a bounded number of slots.

    A window is cut into 60 slots: one minute, 24 minutes or 12 hours. What is sent counts until the whole slot
    is out of the window, up to a slot longer than the window. So a limit holds over any window, wherever it begins, and
    a device that always has something to send uses at least 60/61 of it in the long run: up to 1.6 % stay unused.

    What is sent is `pending` while a request lasts, and counts as sent at its end: the bytes of a slow request may go
    out much later than it began.

    Parameters
    ----------
    moment : Moment
        Now.
    data : bytes, optional
        What `dump` returned: it goes on from there. A request that was under way then counts as sent now, since nobody
        knows how much of it was sent, and when.

    Attributes
    ----------
    time : float
        Seconds that have passed, by the ledger's own time.
    interrupted : bool
        Whether there was such a request.

    Raises
    ------
    FormatError
        When `data` is damaged, or of another format.
    """

    def __init__(self, moment: Moment, data: bytes | None = None) -> None:
        self.time = 0.0
        self.interrupted = False
        self._boot, self._uptime = moment.boot, moment.uptime
        self._wall = moment.wall if moment.wall >= _CLOCK_SET else 0.0  # the latest that is believed
        self._windows = {name: _Window(seconds) for name, seconds in WINDOWS.items()}
        self._pending = (0, 0)
        if data is not None:
            self._go_on(data)
            self.advance(moment)
            self.end()

    def advance(self, moment: Moment) -> bool:
        """Let time pass.

        Returns
        -------
        bool
            Whether the wall clock was set, so that what is remembered on disk is worth writing anew.
        """
        known = moment.wall >= _CLOCK_SET
        same = moment.boot == self._boot and moment.uptime >= self._uptime
        if same:
            passed = moment.uptime - self._uptime
        else:
            passed = max(0.0, moment.wall - self._wall) if known and self._wall else 0.0
        before = self._wall + passed if self._wall else 0.0
        self.time += passed
        self._boot, self._uptime = moment.boot, moment.uptime
        self._wall = max(before, moment.wall) if known else before
        return self._wall > before + _STEP_SECONDS

    def begin(self, size: int, samples: int) -> None:
        """Count a request that is about to be sent."""
        self._pending = (size, samples)

    def end(self, *, sent: bool = True) -> None:
        """Count the request as sent now, or not at all."""
        size, samples = self._pending
        self._pending = (0, 0)
        if sent and (size or samples):
            self.add(size, samples)

    def add(self, size: int, samples: int, window: str | None = None) -> None:
        """Count bytes and samples that were sent now, in all windows or in one."""
        for name, sums in self._windows.items():
            if window in (None, name):
                sums.add(self.time, size, samples)

    def used(self, window: str, what: What, seconds: float | None = None) -> int:
        """Return how much of a window's limit is used, or how much was sent in the latest `seconds` of it."""
        sums = self._windows[window]
        shift = 0.0 if seconds is None else sums.seconds - seconds
        column = _column(what)
        counted = sum(slot[column] for slot in sums.slots if sums.ends(slot) > self.time + shift)
        return counted + self._pending[column - 1]

    def free_in(self, window: str, what: What, most: int) -> float:
        """Return the seconds until no more than `most` of a window's limit are used; 0 if that is so now."""
        over = self.used(window, what) - most
        if over <= 0:
            return 0.0
        sums = self._windows[window]
        for slot in sums.slots:
            end = sums.ends(slot)
            if end > self.time:
                over -= slot[_column(what)]
                if over <= 0:
                    return end - self.time
        return float(sums.seconds + sums.slot)  # what is pending is in the way

    def dump(self) -> bytes:
        """Return the ledger as JSON."""
        slots = {name: list(window.slots) for name, window in self._windows.items()}
        return msgspec.json.encode(
            _Stored(
                time=self.time,
                wall=self._wall,
                boot=self._boot,
                uptime=self._uptime,
                pending=self._pending,
                slots=slots,
            )
        )

    def _go_on(self, data: bytes) -> None:
        try:
            stored = msgspec.json.decode(data, type=_Stored)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise FormatError(f"expected JSON of the format cema.budget/1: {error}") from error
        for name, window in self._windows.items():
            slots = stored.slots.get(name, [])
            numbers = [slot[0] for slot in slots]
            if numbers != sorted(set(numbers)) or (numbers and numbers[-1] > stored.time // window.slot):
                raise FormatError(
                    f"expected slots in their order and none of the future, got {numbers[:100]}"
                )
            window.slots.extend(slots)
        self.time, self._wall = stored.time, stored.wall
        self._boot, self._uptime = stored.boot, stored.uptime
        self._pending, self.interrupted = stored.pending, any(stored.pending)


def _column(what: What) -> int:
    return 1 if what == "bytes" else 2
