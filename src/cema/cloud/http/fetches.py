"""When devices were first given a version: noted in memory, written to the store together, soon after."""

from __future__ import annotations

import logging

from cema._util.events import report
from cema.cloud import events
from cema.cloud.http.notes import Notes
from cema.cloud.store.base import Store
from cema.cloud.store.traces import Fetch, TraceStore
from cema.errors import StoreError

__all__ = ["Fetches"]

log = logging.getLogger(__name__)

# A fleet fetches a version at one moment: one write for all of it, and not one for each device.
DELAY_SECONDS = 1.0
# Notes that may wait to be written; more are not kept.
MOST_NOTES = 4096


class Fetches(Notes):
    """Notes for the traces of updates.

    Parameters
    ----------
    store : Store
        One that keeps no traces gets no notes.
    delay : float
        Seconds from a note to its writing.
    """

    def __init__(self, store: Store, *, delay: float = DELAY_SECONDS) -> None:
        super().__init__(delay)
        self._store = store if isinstance(store, TraceStore) else None
        self._notes: dict[tuple[str, int, str], Fetch] = {}

    def note(self, fetch: Fetch) -> None:
        """Note, on the event loop, that a device was given a version."""
        if self._store is None or len(self._notes) >= MOST_NOTES:
            return
        self._notes.setdefault((fetch.cohort, fetch.version, fetch.device), fetch)
        self._write_later()

    def write(self) -> None:
        """Write what was noted; blocks."""
        notes, self._notes = list(self._notes.values()), {}
        if self._store is None or not notes:
            return
        try:
            self._store.note_fetches(notes)
        except StoreError as error:
            report(log, events.FETCHES_NOT_NOTED, error=str(error))
