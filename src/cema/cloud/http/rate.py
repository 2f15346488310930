"""How much one device may send: samples in a second, and samples and bytes in an hour and a day."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from fractions import Fraction
from typing import NamedTuple

from cema._util.events import report
from cema._util.token_bucket import TokenBucket
from cema._util.units import human_bytes
from cema.cloud import events
from cema.cloud.config import LimitsConfig
from cema.cloud.http.notes import Notes
from cema.cloud.store.devices import Device, DeviceRegister
from cema.cloud.store.fleet import FleetRegister, Usage
from cema.errors import StoreError

__all__ = ["LIMITS", "DeviceRates", "Refusal"]

log = logging.getLogger(__name__)

# Seconds of its rate that a device may send at once, after it has sent nothing for so long.
BURST_SECONDS = 30
# Devices whose use is remembered. One that is forgotten may send a burst again; the rest is read from the store.
MOST_DEVICES = 10_000
# What is charged is written so much later, with all that was charged meanwhile.
DELAY_SECONDS = 15.0

_WINDOWS = {
    "samples_per_hour": 3600,
    "samples_per_day": 86_400,
    "bytes_per_hour": 3600,
    "bytes_per_day": 86_400,
}
_PER_SECOND = "samples_per_second"
LIMITS = (_PER_SECOND, *_WINDOWS)
"""The names of all limits."""


class Refusal(NamedTuple):
    """An upload that may not be taken now: the limit's name, the seconds until it may be, and words for people."""

    limit: str
    seconds: float
    message: str


class _Limit(NamedTuple):
    name: str
    bucket: TokenBucket
    setting: str

    def amount(self, samples: int, size: int) -> int:
        return size if self.name.startswith("bytes") else samples

    def told(self, device: str) -> str:
        if self.name == _PER_SECOND:
            rate = float(self.bucket.capacity / self.bucket.seconds)
            return f"{device!r} sends more than {rate:g} samples per second ({self.setting})"
        what, _, window = self.name.partition("_per_")
        most = int(self.bucket.capacity)
        amount = human_bytes(most) if what == "bytes" else f"{most} samples"
        return f"{device!r} sends more than {amount} per {window} ({self.setting})"


class _Level(NamedTuple):
    used: Fraction
    at: int  # of the clock, in nanoseconds


class DeviceRates(Notes):
    """Buckets of each device, one for each limit (`cema._util.token_bucket`); an upload takes from all or none.

    Any number of threads may use it. What hours and days allow is kept in the register, some seconds later and when the
    server stops, so that a restart gives nobody a full bucket.

    Parameters
    ----------
    limits : LimitsConfig
        What holds for every device; `Device.limits` may say otherwise.
    register : DeviceRegister
        One that takes no acts keeps nothing: after a restart every bucket is full.
    delay : float
        Seconds from a charge to its writing.
    clock : callable
        Nanoseconds that never go back.
    wall : callable
        Unix seconds.
    """

    def __init__(
        self,
        limits: LimitsConfig,
        register: DeviceRegister,
        *,
        delay: float = DELAY_SECONDS,
        clock: Callable[[], int] = time.monotonic_ns,
        wall: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(delay)
        self._limits = limits
        self._register = register if isinstance(register, FleetRegister) else None
        self._clock, self._wall = clock, wall
        self._lock = threading.Lock()
        self._levels: OrderedDict[str, dict[str, _Level]] = OrderedDict()
        # What is to be written, also of devices that are forgotten by then.
        self._changed: dict[str, dict[str, _Level]] = {}

    @contextmanager
    def charged(self, device: Device, samples: int, size: int) -> Iterator[Refusal | None]:
        """Charge an upload for the block, or say why it may not be taken; an exception gives hours and days back.

        Parameters
        ----------
        device : Device
            Who sends.
        samples, size : int
            How many, and the bytes of the body. More than a bucket holds are let through when it is full.
        """
        limits = self._limits_of(device)
        refusal = self._take(device.name, limits, samples, size)
        try:
            yield refusal
        except BaseException:
            if refusal is None:
                self._give_back(device.name, limits, samples, size)
            raise

    def keep_soon(self) -> None:
        """Have what was charged written, on the event loop."""
        if self._changed:
            self._write_later()

    def write(self) -> None:
        """Write what was charged; blocks."""
        with self._lock:
            changed, self._changed = self._changed, {}
            now, wall = self._clock(), self._wall()
        if self._register is None or not changed:
            return
        # What was used at a moment of this process's clock, at that of the wall clock.
        usage = {
            name: {
                of: Usage(float(level.used), wall - (now - level.at) / 1e9) for of, level in levels.items()
            }
            for name, levels in changed.items()
        }
        try:
            self._register.keep_usage(usage)
        except StoreError as error:
            report(log, events.USAGE_NOT_KEPT, error=str(error))
            with self._lock:
                self._changed = {**changed, **self._changed}

    def _limits_of(self, device: Device) -> list[_Limit]:
        found = []
        if self._limits.device_samples:
            bucket = TokenBucket(Fraction(self._limits.device_samples) * BURST_SECONDS, BURST_SECONDS)
            found.append(_Limit(_PER_SECOND, bucket, "limits.device_samples"))
        for name, seconds in _WINDOWS.items():
            own, common = getattr(device.limits, name), getattr(self._limits, f"device_{name}")
            setting = f"limits.device_{name}" if own is None else "the limit of this device"
            if most := common if own is None else own:
                found.append(_Limit(name, TokenBucket(Fraction(most), seconds), setting))
        return found

    def _take(self, device: str, limits: list[_Limit], samples: int, size: int) -> Refusal | None:
        if not limits:
            return None
        kept = self._kept(device, limits)
        with self._lock:
            now = self._clock()
            levels = self._levels.get(device) or self._changed.get(device) or kept
            used = {limit.name: _used(limit, levels, now) for limit in limits}
            waits = [
                (limit.bucket.wait(used[limit.name], limit.amount(samples, size)), limit) for limit in limits
            ]
            longest, limit = max(waits, key=lambda wait: wait[0])
            if longest > 0:
                return Refusal(limit.name, longest / 1e9, limit.told(device))
            taken = {
                limit.name: _Level(used[limit.name] + limit.amount(samples, size), now) for limit in limits
            }
            # What a limit counted that does not hold now counts again when it does.
            self._set(device, {**levels, **taken})
        return None

    def _give_back(self, device: str, limits: list[_Limit], samples: int, size: int) -> None:
        with self._lock:
            levels = dict(self._levels.get(device, {}))
            for limit in limits:
                if limit.name in _WINDOWS and limit.name in levels:
                    used, at = levels[limit.name]
                    levels[limit.name] = _Level(max(Fraction(0), used - limit.amount(samples, size)), at)
            self._set(device, levels)

    def _set(self, device: str, levels: dict[str, _Level]) -> None:
        self._levels[device] = levels
        self._levels.move_to_end(device)
        while len(self._levels) > MOST_DEVICES:
            self._levels.popitem(last=False)
        kept = {name: level for name, level in levels.items() if name in _WINDOWS}
        if kept and self._register is not None:
            self._changed[device] = kept

    def _kept(self, device: str, limits: list[_Limit]) -> Mapping[str, _Level]:
        """Read what was written of a device that is not in memory."""
        wanted = any(limit.name in _WINDOWS for limit in limits)
        if self._register is None or not wanted or device in self._levels:
            return {}
        usage = self._register.usage(device)
        now, wall = self._clock(), self._wall()
        # A wall clock that was set back has told nothing about the time since: none of it counts.
        return {
            name: _Level(Fraction(used), now - int(max(0.0, wall - at) * 1e9))
            for name, (used, at) in usage.items()
        }


def _used(limit: _Limit, levels: Mapping[str, _Level], now: int) -> Fraction:
    level = levels.get(limit.name)
    return Fraction(0) if level is None else limit.bucket.left_of(level.used, now - level.at)
