"""Devices that operators have quarantined, as a cohort's worker sees them.

It treats them as those that it has quarantined itself (`cema.cloud.worker.fairness`): some of their samples are looked
at, nothing is learned from them, and they count for none of the others. What of theirs waits for a full batch, or would
be replayed, is left out too. None of it is in the checkpoint: the store is asked in every turn.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import msgspec

from cema._util.events import report
from cema.cloud import events
from cema.cloud.store.base import Store
from cema.cloud.store.fleet import FleetRegister
from cema.cloud.worker.checkpoint import Progress
from cema.cloud.worker.fairness import DeviceRecord, Ledger

__all__ = ["OperatorQuarantine"]

log = logging.getLogger(__name__)


class OperatorQuarantine:
    """Who is quarantined by operators, in all cohorts: a device that was moved left samples in another one.

    Parameters
    ----------
    store
        Whose register says so; one that takes no acts on devices has none.
    cohort
        The cohort's name, for the log.

    Attributes
    ----------
    names : frozenset of str
        As of the last `look`.
    """

    def __init__(self, store: Store, cohort: str) -> None:
        register = store.devices(())
        self._store = store
        self._register = register if isinstance(register, FleetRegister) else None
        self._cohort = cohort
        self.names: frozenset[str] = frozenset()
        self._looked_at: tuple[frozenset[str], list[int]] = (self.names, [])

    def look(self, progress: Progress) -> int:
        """Read who is quarantined now, drop what of theirs was held for a full batch, and return how many that were."""
        if self._register is None:
            return 0
        names = frozenset(self._register.quarantined())
        if names != self.names:
            new, released = (", ".join(sorted(of)) for of in (names - self.names, self.names - names))
            self.names = names
            report(log, events.QUARANTINE_CHANGED, cohort=self._cohort, quarantined=new, released=released)
        # Their images are read with them: once for what is held, and not in every turn.
        if not names or not progress.held or (names, progress.held) == self._looked_at:
            return 0
        held = [sample.seq for sample in self._store.samples(progress.held) if sample.device not in names]
        dropped = len(progress.held) - len(held)
        if dropped:
            progress.hold(held, None)
        self._looked_at = names, list(progress.held)
        return dropped

    def marked(self, ledger: Ledger) -> Ledger:
        """Return the ledger as a draw is to see it: with these devices quarantined."""
        if not self.names:
            return ledger
        marked = {
            name: msgspec.structs.replace(ledger.devices.get(name, DeviceRecord()), quarantined=True)
            for name in self.names
        }
        return Ledger(devices={**ledger.devices, **marked})

    def images(self, seqs: Sequence[int]) -> dict[int, bytes]:
        """Return the images to replay by sequence number, without those of these devices."""
        if not self.names:
            return self._store.images(seqs)
        stored = self._store.samples(seqs)
        return {sample.seq: sample.image for sample in stored if sample.device not in self.names}
