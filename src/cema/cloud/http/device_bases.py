"""Which base model each device has: noted in memory when it names another one, written to the store soon after."""

from __future__ import annotations

import logging
import time

from cema._util.events import report
from cema.cloud import events
from cema.cloud.http.notes import Notes
from cema.cloud.store.base import Store
from cema.cloud.store.bases import BaseStore, DeviceBase
from cema.errors import StoreError

__all__ = ["DeviceBases"]

log = logging.getLogger(__name__)

# A fleet comes to another base within minutes: one write for many devices.
DELAY_SECONDS = 2.0
# Devices whose bases are remembered; those of more are written whenever they ask.
MOST_DEVICES = 65_536


class DeviceBases(Notes):
    """Notes for those who want to know how far a migration is.

    Parameters
    ----------
    store : Store
        One that changes no bases gets no notes.
    delay : float
        Seconds from a note to its writing.
    """

    def __init__(self, store: Store, *, delay: float = DELAY_SECONDS) -> None:
        super().__init__(delay)
        self._store = store if isinstance(store, BaseStore) else None
        self._known: dict[str, tuple[str, str]] = {}
        self._notes: dict[str, DeviceBase] = {}

    def note(self, cohort: str, device: str, base: str | None) -> None:
        """Note, on the event loop, that a device names its base."""
        if self._store is None or base is None or self._known.get(device) == (cohort, base):
            return
        if len(self._known) < MOST_DEVICES:
            self._known[device] = cohort, base
        if len(self._notes) < MOST_DEVICES:
            self._notes[device] = DeviceBase(cohort, device, base, time.time())
            self._write_later()

    def write(self) -> None:
        """Write what was noted; blocks."""
        notes, self._notes = list(self._notes.values()), {}
        if self._store is None or not notes:
            return
        try:
            self._store.note_device_bases(notes)
        except StoreError as error:
            for note in notes:
                self._known.pop(note.device, None)  # noted again with its next question
            report(log, events.BASES_NOT_NOTED, error=str(error))
