"""Steps that fail: those that a process did not survive are counted in the store, so that the next process knows."""

from __future__ import annotations

import logging

from cema._util.events import report
from cema.cloud import events
from cema.cloud.store.base import Store
from cema.errors import StoreError

__all__ = ["ATTEMPTS", "PATIENCE", "Attempts", "WorkerFailed"]

log = logging.getLogger(__name__)

# First steps that died with their process, after which what they would have learned from is left out.
ATTEMPTS = 5
# Processes that may die of a step for whatever reason, and the next one does the very same step again.
PATIENCE = 2


class WorkerFailed(StoreError):  # noqa: N818 - a state, not a fault of a call
    """Several samples in a row could not be learned from: the fault is not in them."""


class Attempts:
    """The attempts at one cohort's next step.

    Only the first step of a process counts: what it has survived once is not what it dies of.

    Parameters
    ----------
    store : Store
        Where they are counted.
    cohort : str
        Whose step it is.
    before : int
        Attempts of earlier processes since the last commit.
    """

    def __init__(self, store: Store, cohort: str, before: int) -> None:
        self._store, self._cohort = store, cohort
        self._before: int | None = before

    @property
    def halvings(self) -> int:
        """How often a batch is halved, so that the one sample is found that processes die of."""
        return max(0, (self._before or 0) - PATIENCE)

    def exhausted(self, batch: int = 1) -> bool:
        """Tell whether several processes in a row have died of this step; note the attempt where not.

        Parameters
        ----------
        batch : int
            Samples of a full batch, halved down to one before anything is left out.

        Raises
        ------
        StoreUnavailable
            The attempt cannot be noted.
        """
        if self._before is None:
            return False
        before, self._before = self._before, None
        if before >= max(ATTEMPTS, PATIENCE + batch.bit_length()):
            report(log, events.STEP_ABANDONED, cohort=self._cohort, processes=before)
            return True
        self._store.mark_attempt(self._cohort)
        return False

    def committed(self) -> None:
        """Take note of a commit: whatever processes died of before it, they are past it."""
        if self._before is not None:
            self._before = 0

    def forgive(self) -> None:
        """Count no attempt of this process: no process has died of the samples that are next."""
        self._before = None
