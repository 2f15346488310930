"""Which devices have asked for updates, and the version that each has."""

from __future__ import annotations

import logging
import re
import time

from cema._util.events import report
from cema.cloud import events
from cema.cloud.http.notes import Notes
from cema.cloud.store.activity import ActivityStore, Poll
from cema.cloud.store.base import Store
from cema.errors import StoreError

__all__ = ["Polls"]

log = logging.getLogger(__name__)

# A fleet asks all the time: one write for all of it, and not one for each question.
DELAY_SECONDS = 15.0
# Devices whose polls may wait to be written; those of more are not noted.
MOST_NOTES = 65_536
# As this cloud makes them: the digest and the version.
_ETAG = re.compile(r'\s*(?:W/)?"[0-9a-f]{64}-([0-9]{1,18})"\s*')


class Polls(Notes):
    """The last poll of each device.

    Parameters
    ----------
    store : Store
        One that keeps no activity gets no notes.
    delay : float
        Seconds from a note to its writing.
    """

    def __init__(self, store: Store, *, delay: float = DELAY_SECONDS) -> None:
        super().__init__(delay)
        self._store = store if isinstance(store, ActivityStore) else None
        self._polls: dict[str, Poll] = {}

    def note(self, cohort: str, device: str, known: str | None) -> None:
        """Note, on the event loop, that a device asks; `known` is its header ``If-None-Match``."""
        if self._store is None or (len(self._polls) >= MOST_NOTES and device not in self._polls):
            return
        found = _ETAG.fullmatch(known or "")
        self._polls[device] = Poll(cohort, device, time.time(), int(found[1]) if found else None)
        self._write_later()

    def write(self) -> None:
        """Write what was noted; blocks."""
        polls, self._polls = list(self._polls.values()), {}
        if self._store is None or not polls:
            return
        try:
            self._store.note_polls(polls)
        except StoreError as error:
            report(log, events.POLLS_NOT_NOTED, error=str(error))
