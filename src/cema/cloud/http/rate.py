"""How many samples a device may send in a second, over some time."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable

__all__ = ["RateLimit"]

# Seconds of its rate that a device may send at once, after it has sent nothing for so long.
BURST_SECONDS = 30.0
# Devices whose use is remembered; one that is forgotten may send a whole burst again.
MOST_DEVICES = 10_000


class RateLimit:
    """A bucket of samples for each device, filled at a constant rate.

    Any number of threads may use it. It is kept in memory alone: after a restart every bucket is full.

    Parameters
    ----------
    rate : float
        Samples per second; 0 for no limit.
    clock : callable
        Seconds that never go back.

    Examples
    --------
    >>> limit = RateLimit(1.0, clock=lambda: 0.0)
    >>> limit.take("cam", 30), limit.take("cam", 10)
    (0.0, 10.0)
    """

    def __init__(self, rate: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._clock = clock
        self._lock = threading.Lock()
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, device: str, samples: int) -> float:
        """Take samples out of a device's bucket.

        Parameters
        ----------
        device : str
            Its name.
        samples : int
            How many it sends. More than a bucket holds are let through when it is full.

        Returns
        -------
        float
            0 when they were taken; else the seconds until they could be, and nothing was taken.
        """
        if not self._rate:
            return 0.0
        full = self._rate * BURST_SECONDS
        with self._lock:
            now = self._clock()
            level, since = self._buckets.get(device, (full, now))
            level = min(full, level + self._rate * (now - since))
            missing = min(samples, full) - level
            if missing > 0:
                return missing / self._rate
            self._buckets[device] = (level - samples, now)
            self._buckets.move_to_end(device)
            while len(self._buckets) > MOST_DEVICES:
                self._buckets.popitem(last=False)
        return 0.0
