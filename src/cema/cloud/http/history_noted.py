"""What the server sees of traffic, samples and reports over time: added up in memory, written together, soon after."""

from __future__ import annotations

import asyncio
import logging
import threading
import time

from cema._util.events import report
from cema.cloud import events
from cema.cloud.http.notes import Notes
from cema.cloud.store.base import Store
from cema.cloud.store.history import BIN_SECONDS, HistoryNote, HistoryStore, Measures
from cema.errors import StoreError

__all__ = ["HistoryNotes"]

log = logging.getLogger(__name__)

DELAY_SECONDS = 10.0
# Bins that may wait to be written, of all cohorts; what belongs to more is not kept.
MOST_BINS = 4096


class HistoryNotes(Notes):
    """Measures of all cohorts that wait to be written.

    Parameters
    ----------
    store : Store
        One that keeps no history gets none.
    delay : float
        Seconds from a measure to its writing.
    """

    def __init__(self, store: Store, *, delay: float = DELAY_SECONDS) -> None:
        super().__init__(delay)
        self._store = store if isinstance(store, HistoryStore) else None
        self._lock = threading.Lock()
        self._sums: dict[tuple[str, int], dict[str, list[float]]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    def add(self, cohort: str, measures: Measures) -> None:
        """Add measures of this moment; on the event loop, or in any thread once it was called there.

        Before that nothing waits to be written by itself: what is added goes with the next write.
        """
        if self._store is None:
            return
        now = int(time.time())
        key = cohort, now - now % BIN_SECONDS
        with self._lock:
            sums = self._sums.get(key)
            if sums is None:
                if len(self._sums) >= MOST_BINS:
                    return
                sums = self._sums[key] = {}
            for name, (count, total) in measures.items():
                known = sums.setdefault(name, [0, 0])
                known[0] += count
                known[1] += total
        if self._writer is None:
            self._schedule()

    def _schedule(self) -> None:
        try:
            self._loop = asyncio.get_running_loop()
        except RuntimeError:
            if self._loop is not None and not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._write_later)
        else:
            self._write_later()

    def write(self) -> None:
        """Write what was added; blocks."""
        with self._lock:
            sums, self._sums = self._sums, {}
        if self._store is None or not sums:
            return
        notes = [
            HistoryNote(cohort, at, {name: (count, total) for name, (count, total) in found.items()})
            for (cohort, at), found in sums.items()
        ]
        try:
            self._store.note_history(notes)
        except StoreError as error:
            report(log, events.HISTORY_NOT_NOTED, error=str(error))
