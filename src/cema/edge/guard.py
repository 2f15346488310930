"""Return to the source model, at once and without the cloud, where an update was not made for what comes in.

Normalisation that was fitted to one domain may be far worse than the source model's in another: a version of
EfficientNet-Lite0 that had adapted to noise got 0 of 20 blurred photographs right. The cloud would notice too, but
only once samples have been sent and learned from.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque

import numpy as np
import numpy.typing as npt

from cema.edge.runtime import Active
from cema.ondevice.drift import DriftMonitor, input_statistics

__all__ = ["Guard"]

# What came in before counts in the average by less than a millionth; so many inputs of this size are one megabyte.
_LATEST, _SMALL = 64, 16 << 10


class Guard:
    """Chooses, batch by batch, between the version that was installed and the source model.

    Parameters
    ----------
    source : Active
        What the device was provisioned with.
    limit : float
        See :class:`cema.ondevice.drift.DriftMonitor`.
    """

    def __init__(self, source: Active, limit: float) -> None:
        self.source = source
        self._watch = DriftMonitor(limit)
        self._lock = threading.Lock()
        self._waiting: deque[npt.NDArray[np.float32]] = deque()
        self._held = 0  # inputs in it
        # Known, not held: the model of a version that was replaced is to go.
        self._watched: weakref.ref[Active] | None = None

    @property
    def drifted(self) -> bool:
        """Whether the latest inputs were not of the update's domain."""
        return self._watch.drifted

    def consider(
        self, installed: Active, batch: npt.NDArray[np.float32]
    ) -> tuple[Active, npt.NDArray[np.float32] | None]:
        """Take in a batch and return what is to predict it. Any number of threads may call this.

        Parameters
        ----------
        installed : Active
            The newest version; without a domain it goes with any input.
        batch : ndarray of float32 (N, C, H, W)
            Preprocessed inputs.

        Returns
        -------
        chosen : Active
        rows : ndarray of float32 (N, F) or None
            `cema.ondevice.drift.input_statistics` of the batch, where they had to be found out.
        """
        if installed.domain is None:
            latest = batch[-_LATEST:]
            if not len(latest):
                return installed, None
            small = latest.nbytes <= _SMALL * len(latest)
            latest = latest if small else input_statistics(latest)
            with self._lock:
                self._enter(installed)
                self._defer(latest)
            return installed, None
        rows = input_statistics(batch)
        with self._lock:
            self._enter(installed)
            self._watch.observe(rows)
            return self.source if self._watch.drifted else installed, rows

    def _enter(self, installed: Active) -> None:
        """Compare with the domain of a version that is new, and with what came in before it did."""
        if self._watched is not None and installed is self._watched():
            return
        self._watched = weakref.ref(installed)
        waiting, self._waiting, self._held = self._waiting, deque(), 0
        for rows in waiting:
            self._watch.observe(rows if rows.ndim == 2 else input_statistics(rows))
        self._watch.enter(installed.domain)

    def _defer(self, latest: npt.NDArray[np.float32]) -> None:
        """Keep inputs, or the statistics of large ones, until there is a domain to compare them with."""
        self._waiting.append(latest)
        self._held += len(latest)
        while self._held - len(self._waiting[0]) >= _LATEST:
            self._held -= len(self._waiting.popleft())
