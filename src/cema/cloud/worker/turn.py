"""One cohort's turn in the worker's round: while a cohort cannot work it is set aside, and the others go on."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from cema._util.events import report
from cema.cloud import events
from cema.cloud.store.base import Fenced, OtherBase, Store
from cema.cloud.worker.bases import check_base
from cema.cloud.worker.checkpoint import CohortUnreadable
from cema.cloud.worker.cohort import CohortWorker
from cema.errors import CemaError, StoreError, StoreFull, StoreUnavailable

__all__ = ["Turn"]

log = logging.getLogger(__name__)

FIRST_DELAY = 2.0
LONGEST_DELAY = 60.0


class Turn:
    """Runs one cohort, and tries again later when it fails.

    A full disk, a store that cannot be used, a checkpoint that cannot be read, another base model than the configured
    one: none of these is cured by ending the process, and each of them may concern one cohort alone.

    Parameters
    ----------
    store
        Where the cohort's report goes.
    cohort
        The cohort's name.
    open_worker
        Opens the cohort.
    clock
        Seconds that never go back.

    Raises
    ------
    ConfigError, StoreUnavailable
        What `open_worker` raises at the first try, except `CohortUnreadable` and `OtherBase`.

    Attributes
    ----------
    failure : Exception or None
        What a new process may cure; None while the cohort works or waits for the store.
    """

    def __init__(
        self,
        store: Store,
        cohort: str,
        open_worker: Callable[[], CohortWorker],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.cohort = cohort
        self.failure: Exception | None = None
        self._store = store
        self._open_worker = open_worker
        self._clock = clock
        self._worker: CohortWorker | None = None
        self._aside: Exception | None = None
        self._retry_at = 0.0
        self._delay = FIRST_DELAY
        try:
            self._worker = open_worker()
        except (CohortUnreadable, OtherBase) as error:
            self._set_aside(error)

    def once(self) -> bool:
        """Do the next thing there is to do for the cohort; False when there was nothing, or it is set aside.

        Raises
        ------
        Fenced
            Another worker has taken the cohort over.
        """
        try:
            if self._aside is not None:
                if self._clock() < self._retry_at:
                    return False
                self._go_on()
            busy = self._worker is not None and self._run(self._worker)
        except Fenced:
            raise
        except OtherBase as error:
            self._worker = None  # its models are those of the base of before
            self._set_aside(error)
            return False
        except (CohortUnreadable, StoreFull, StoreUnavailable) as error:
            self._set_aside(error)
            return False
        except CemaError as error:
            self.failure = error
            self._set_aside(error)
            return False
        self._delay = FIRST_DELAY
        return busy

    def _run(self, worker: CohortWorker) -> bool:
        base = worker.publisher.bundle.manifest.base
        check_base(self._store, self.cohort, base)
        try:
            return worker.run_once()
        except Fenced:
            check_base(self._store, self.cohort, base)  # was it a migration?
            raise

    def finish(self) -> None:
        """Write what a worker that is told to stop has still to write."""
        if self._worker is not None:
            self._worker.history.write()

    def report(self) -> None:
        """Say in the store what the cohort is doing."""
        if self._aside is not None or self._worker is None:
            content = {"ready": False, "error": f"{type(self._aside).__name__}: {self._aside}"[:500]}
        else:
            content = self._worker.report()
        try:
            self._store.put_report(self.cohort, content, now=time.time())
        except StoreError as error:
            report(log, events.REPORT_NOT_WRITTEN, cohort=self.cohort, error=str(error))

    def _go_on(self) -> None:
        """Return to the last committed step; what was in memory is beyond it."""
        if self._worker is None:
            self._worker = self._open_worker()
        else:
            self._worker.rewind()
        report(log, events.COHORT_RESUMED, cohort=self.cohort)
        self._aside = self.failure = None

    def _set_aside(self, error: Exception) -> None:
        waits = isinstance(error, OtherBase)  # for somebody to change the configuration: looking costs little
        if not (waits and str(error) == str(self._aside)):
            report(log, events.COHORT_SET_ASIDE, cohort=self.cohort, seconds=self._delay, error=str(error))
        self._aside = error
        self._retry_at = self._clock() + self._delay
        self._delay = FIRST_DELAY if waits else min(2 * self._delay, LONGEST_DELAY)
        self.report()
