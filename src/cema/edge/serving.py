"""What the installed version, and the one before it, did on this device since each began to serve."""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cema.edge.status import EdgeStatus
from cema.formats.report import SELECTION, Served

__all__ = ["Facts", "ServingLog", "selection_told", "thresholds_told"]


class Facts(NamedTuple):
    """What is reported; see `cema.formats.report.DeviceReport`."""

    serving: Served
    before: Served | None
    counts: Mapping[str, int]
    problem: str | None
    selection: Mapping[str, int] = {}
    thresholds: Mapping[str, float] = {}


def selection_told(status: EdgeStatus) -> dict[str, int]:
    """Return images by what the selection made of them, over the device's whole life."""
    found = Counter({"selected": status.selected, "near_duplicate": status.dropped.get("near_duplicate", 0)})
    for reason, number in status.left_out.items():
        found[reason if reason in SELECTION else "other"] += max(
            0, number
        )  # a rule of one's own may say anything
    return {name: number for name, number in found.items() if number}


def thresholds_told(status: EdgeStatus) -> dict[str, float]:
    """Return the thresholds between which the entropy of a selected sample lies; empty for a rule without any.

    What is not finite is left out: JSON has no number for it, and the cloud would refuse the report.
    """
    known = {"low": status.selection.get("e_min"), "high": status.selection.get("e_max")}
    return {name: value for name, value in known.items() if value is not None and math.isfinite(value)}


class _Tally:
    """Sums of one version."""

    def __init__(self, version: int) -> None:
        self.version = version
        self.predicted = 0
        self.guarded = 0
        self.entropy = 0.0

    def served(self) -> Served:
        own = self.predicted - self.guarded
        return Served(
            version=self.version,
            predicted=self.predicted,
            guarded=self.guarded,
            entropy=self.entropy / own if own else 0.0,
        )


class ServingLog:
    """Counts, by version, what is predicted.

    Parameters
    ----------
    version : int
        The one that is installed at the start.
    """

    def __init__(self, version: int) -> None:
        self._lock = threading.Lock()
        self._serving = _Tally(version)
        self._before: _Tally | None = None

    def installed(self, version: int) -> None:
        """Begin anew, before a version serves; one of the same number goes on."""
        with self._lock:
            if version != self._serving.version:
                self._before, self._serving = self._serving, _Tally(version)

    def note(self, version: int, entropy: npt.NDArray[np.float64], *, guarded: bool) -> None:
        """Count a batch. Any number of threads may call this.

        Parameters
        ----------
        version : int
            The one that was installed when it began; one from before the last two is not counted.
        entropy : ndarray of float64 (N,)
            Of the predictions, in nats.
        guarded : bool
            Whether the source model made them in its place.
        """
        with self._lock:
            for tally in (self._serving, self._before):
                if tally is not None and tally.version == version:
                    tally.predicted += len(entropy)
                    tally.guarded += len(entropy) if guarded else 0
                    tally.entropy += 0.0 if guarded else float(entropy.sum())
                    return

    def read(self) -> tuple[Served, Served | None]:
        """Return what the installed version did, and the one before it."""
        with self._lock:
            return self._serving.served(), None if self._before is None else self._before.served()
