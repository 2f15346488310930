"""The last report of each device: noted in memory, written to the store together, soon after."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from cema._util.events import report
from cema.cloud import events
from cema.cloud.http.history_noted import HistoryNotes
from cema.cloud.http.notes import Notes
from cema.cloud.store.base import Store
from cema.cloud.store.history import Measures
from cema.cloud.store.reports import DeviceReports, Reported, ReportStore
from cema.errors import StoreError
from cema.formats.report import SELECTION

__all__ = ["Reports", "report_measures"]

log = logging.getLogger(__name__)

# A fleet reports a new version at one moment: one write for all of it. A canary rollout waits for reports.
DELAY_SECONDS = 1.0
# Devices whose reports may wait to be written; those of more are lost.
MOST_NOTES = 65_536
# A device may say anything: more images between two reports, or nats, are not believed.
MOST_IMAGES, LARGEST_ENTROPY = 10**7, 50.0


class Reports(Notes):
    """The last report of each device.

    Parameters
    ----------
    store : Store
        One that keeps no reports gets none.
    history : HistoryNotes, optional
        Gets what was new in each report.
    delay : float
        Seconds from a report to its writing.
    """

    def __init__(
        self, store: Store, *, history: HistoryNotes | None = None, delay: float = DELAY_SECONDS
    ) -> None:
        super().__init__(delay)
        self._history = history
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
            known = {} if self._history is None else self._store.reports({note.device for note in notes})
            self._store.note_reports(notes)
        except StoreError as error:
            report(log, events.REPORTS_NOT_NOTED, error=str(error))
            return
        if self._history is not None:
            for note in notes:
                self._history.add(note.cohort, report_measures(note, known))


def report_measures(reported: Reported, known: Mapping[str, DeviceReports]) -> Measures:
    """Return what is new in a report: its thresholds, and how many images more than in the one before, if of one start.

    Parameters
    ----------
    reported : Reported
    known : mapping of str to DeviceReports
        What was known of devices before it.
    """
    now, before = reported.report, known.get(reported.device)
    found: dict[str, tuple[float, float]] = {}
    if before is not None and before.cohort == reported.cohort and before.report.boot == now.boot:
        if before.report.number >= now.number:  # it was overtaken
            return {}
        for name in SELECTION:
            more = now.selection.get(name, 0) - before.report.selection.get(name, 0)
            if before.report.selection and 0 < more <= MOST_IMAGES:
                found[f"selection.{name}"] = more, more
    for name in ("low", "high"):
        if 0 <= now.thresholds.get(name, -1.0) <= LARGEST_ENTROPY:
            found[f"threshold.{name}"] = 1, now.thresholds[name]
    return found
