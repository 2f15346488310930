"""What is noticed of tokens as they are used: that a new one has reached its device, and that one will expire soon."""

from __future__ import annotations

import logging
import time

from cema._util.events import report
from cema.cloud import events
from cema.cloud.http.notes import Notes
from cema.cloud.store.devices import EXPIRES_SOON, Device, DeviceRegister
from cema.cloud.store.fleet import FleetRegister
from cema.errors import StoreError

__all__ = ["Tokens"]

log = logging.getLogger(__name__)

# How often it says so of one device.
SAY_AGAIN_SECONDS = 86_400.0
DELAY_SECONDS = 1.0
# Devices whose expiry was told of; beyond them, it is told of again.
MOST_TOLD = 65_536


class Tokens(Notes):
    """Tokens of devices that ask or send.

    Parameters
    ----------
    register : DeviceRegister
        One that takes no acts gets no notes.
    delay : float
        Seconds from a note to its writing.
    """

    def __init__(self, register: DeviceRegister, *, delay: float = DELAY_SECONDS) -> None:
        super().__init__(delay)
        self._register = register if isinstance(register, FleetRegister) else None
        self._taken: set[str] = set()
        self._told: dict[str, float] = {}

    def seen(self, device: Device) -> None:
        """Take note, on the event loop, that a device has used a token; most of the time there is nothing to note."""
        if device.older_token_until is not None and device.taken_at is None and not device.by_older_token:
            self._taken.add(device.name)
            self._write_later()
        if device.expires_at is not None:
            self._say(device.name, device.expires_at - time.time())

    def _say(self, name: str, left: float) -> None:
        now = time.monotonic()
        if left > EXPIRES_SOON or self._told.get(name, now) > now:
            return
        if len(self._told) >= MOST_TOLD:
            self._told.clear()
        self._told[name] = now + SAY_AGAIN_SECONDS
        report(log, events.DEVICE_EXPIRES, crowd=name, device=name, days=left / 86_400)

    def write(self) -> None:
        """Write what was noted; blocks."""
        taken, self._taken = self._taken, set()
        if self._register is None or not taken:
            return
        try:
            self._register.note_taken(taken, now=time.time())
        except StoreError as error:
            report(log, events.TOKENS_NOT_NOTED, error=str(error))
