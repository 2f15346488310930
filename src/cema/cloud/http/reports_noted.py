"""The last report of each device: noted in memory, written to the store together, soon after."""

from __future__ import annotations

import logging

from cema._util.events import report
from cema.cloud import events
from cema.cloud.http.notes import Notes
from cema.cloud.store.base import Store
from cema.cloud.store.reports import Reported, ReportStore
from cema.errors import StoreError

__all__ = ["Reports"]

log = logging.getLogger(__name__)

# A fleet reports a new version at one moment: one write for all of it. A canary rollout waits for reports.
DELAY_SECONDS = 1.0
# Devices whose reports may wait to be written; those of more are lost.
MOST_NOTES = 65_536


class Reports(Notes):
    """The last report of each device.

    Parameters
    ----------
    store : Store
        One that keeps no reports gets none.
    delay : float
        Seconds from a report to its writing.
    """

    def __init__(self, store: Store, *, delay: float = DELAY_SECONDS) -> None:
        super().__init__(delay)
        self._store = store if isinstance(store, ReportStore) else None
        self._notes: dict[tuple[str, str], Reported] = {}

    def note(self, reported: Reported) -> None:
        """Note a report, on the event loop."""
        cohort, device = reported.cohort, reported.device
        key = device, reported.report.boot
        known = self._notes.get(key)
        if self._store is None or (known is None and len(self._notes) >= MOST_NOTES):
            return
        if known is not None:
            newest = max(known, reported, key=lambda each: each.report.number)
            reported = Reported(cohort, device, newest.at, newest.report, known.received + 1)
        self._notes[key] = reported
        self._write_later()

    def write(self) -> None:
        """Write what was noted; blocks."""
        notes, self._notes = list(self._notes.values()), {}
        if self._store is None or not notes:
            return
        try:
            self._store.note_reports(notes)
        except StoreError as error:
            report(log, events.REPORTS_NOT_NOTED, error=str(error))
