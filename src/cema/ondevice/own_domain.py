"""Whether a device's inputs are still of the domain that its own latest statistics were read from."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cema._util.checks import require
from cema.ondevice.drift import Domain, DriftMonitor, input_statistics

__all__ = ["OwnDomain"]


# Inputs that are described together: one by one it takes several times as long.
_TOGETHER = 8
# Once a domain is known, one of so many inputs is compared with it: describing all of them took as long as half of a
# prediction of the digits' model.
_ONE_OF = 4


class OwnDomain:
    """Compare inputs with the first ones since the last change, without a cloud.

    Parameters
    ----------
    limit : float
        The distance at which the domain has changed (`cema.ondevice.drift.DriftMonitor`); 0 for never.
    size : int
        Inputs that a domain is described by, at least 16. Between two changes there are at least as many.

    Attributes
    ----------
    changes : int
        How often the domain changed.
    """

    def __init__(self, limit: float, *, size: int = 64) -> None:
        require(np.isfinite(limit) and limit >= 0, "limit", "a finite number of at least 0", limit)
        require(size >= 16, "size", "at least 16 inputs", size)
        self.changes = 0
        self._limit, self._size = limit, size
        self._waiting: list[npt.NDArray[np.float32]] = []  # inputs to be described, or statistics
        self._passed = 0  # inputs since the last one that was
        self._begin()

    def _begin(self) -> None:
        self._watch: DriftMonitor | None = None
        self._first: list[npt.NDArray[np.float32]] = []

    def observe_inputs(
        self, inputs: npt.NDArray[np.float32], rows: npt.NDArray[np.float32] | None = None
    ) -> bool:
        """Take in preprocessed inputs (N, C, H, W): all of a domain's first ones, and then one of four.

        Small calls are taken in several at a time.

        Parameters
        ----------
        inputs : ndarray of float32 (N, C, H, W)
            Preprocessed.
        rows : ndarray of float32 (N, F), optional
            Their statistics, where they are known.

        Returns
        -------
        bool
            As `observe`.
        """
        if not self._limit or not len(inputs):
            return False
        latest = inputs if rows is None else rows
        if self._watch is not None:
            seen, self._passed = self._passed, (self._passed + len(latest)) % _ONE_OF
            latest = latest[-seen % _ONE_OF :: _ONE_OF]
            if not len(latest):
                return False
        many = len(latest) >= _TOGETHER
        self._waiting.append(latest if many else latest.copy())
        if not many and sum(map(len, self._waiting)) < _TOGETHER:
            return False
        waiting, self._waiting = self._waiting, []
        return self.observe(_described(waiting))

    def observe(self, rows: npt.NDArray[np.float32]) -> bool:
        """Take in statistics of inputs, in their order.

        Parameters
        ----------
        rows : ndarray of float32 (N, F)
            From :func:`cema.ondevice.drift.input_statistics`.

        Returns
        -------
        bool
            Whether they show that the domain has changed. What comes next describes the new one: these rows may be of
            both.
        """
        if not self._limit:
            return False
        if self._watch is None:
            self._gather(rows)
            return False
        self._watch.observe(rows)
        if not self._watch.drifted:
            return False
        self._begin()
        self.changes += 1
        return True

    def _gather(self, rows: npt.NDArray[np.float32]) -> None:
        self._first.append(rows[np.isfinite(rows).all(axis=1)])
        known = np.concatenate(self._first)
        if len(known) < max(self._size, known.shape[1] + 3):
            return
        self._watch = DriftMonitor(self._limit)
        self._watch.enter(Domain.of(known))
        self._first = []


def _described(waiting: list[npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
    """Return the statistics of inputs, some of which may be there as statistics already."""
    if len({latest.shape[1:] for latest in waiting}) == 1:
        latest = waiting[0] if len(waiting) == 1 else np.concatenate(waiting)
        return latest if latest.ndim == 2 else input_statistics(latest)
    return np.concatenate([latest if latest.ndim == 2 else input_statistics(latest) for latest in waiting])
