"""Return to the source model, at once and without the cloud, where an update was not made for what comes in.

Normalisation that was fitted to one domain may be far worse than the source model's in another: a version of
EfficientNet-Lite0 that had adapted to noise got 0 of 20 blurred photographs right. The cloud would notice too, but
only once samples have been sent and learned from.
"""

from __future__ import annotations

import threading

import numpy as np
import numpy.typing as npt

from cema.edge.runtime import Active
from cema.ondevice.drift import DriftMonitor, input_statistics

__all__ = ["Guard"]


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
        self._watched: Active | None = None

    @property
    def drifted(self) -> bool:
        """Whether the latest inputs were not of the update's domain."""
        return self._watch.drifted

    def choose(self, installed: Active, batch: npt.NDArray[np.float32]) -> Active:
        """Take in a batch and return what is to predict it. Any number of threads may call this.

        Parameters
        ----------
        installed : Active
            The newest version; without a domain it goes with any input.
        batch : ndarray of float32 (N, C, H, W)
            Preprocessed inputs.
        """
        rows = input_statistics(batch)
        with self._lock:
            if installed is not self._watched:
                self._watched = installed
                self._watch.enter(installed.domain)
            self._watch.observe(rows)
            return self.source if self._watch.drifted else installed
