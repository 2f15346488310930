"""What an operator has asked for, as a cohort's worker sees it and does it."""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

import msgspec

from cema._util.events import report
from cema.cloud import events
from cema.cloud.store.base import PublishedUpdate, Store
from cema.cloud.store.control import SOURCE, Acted, Control, ControlStore, Rollback, name_of
from cema.cloud.store.offers import Offer
from cema.cloud.worker.publisher import Publisher

__all__ = ["ActsOfOperators", "Done"]

log = logging.getLogger(__name__)


class Done(NamedTuple):
    """An act that was done: how it is written down, the update that came of it, and whether learning begins anew.

    The update is for the devices of the offer, where there is one, and else for all.
    """

    acted: Acted
    update: PublishedUpdate | None
    begins_anew: bool
    offer: Offer | None = None


class ActsOfOperators:
    """A cohort's acts.

    Parameters
    ----------
    store
        Where they are written down; one that takes none has none.
    cohort
        The cohort's name.
    """

    def __init__(self, store: Store, cohort: str) -> None:
        self._store = store
        self._control_store = store if isinstance(store, ControlStore) else None
        self._cohort = cohort
        self.control = Control()

    def look(self) -> Acted | None:
        """Read what all acts come to, and return the one that is to be done now."""
        if self._control_store is None:
            return None
        self.control = self._control_store.control(self._cohort)
        return self._control_store.waiting_act(self._cohort)

    @property
    def publishes(self) -> bool:
        """Whether what is learned may be published."""
        return self.control.publishing == "on"

    def committed_with(self, done: Done | None) -> dict[str, Any]:
        """Return what the store is to check and to write down with a step."""
        if self._control_store is None:
            return {}
        return {"control": self.control.serial, "acted": None if done is None else done.acted}

    def do(self, act: Acted, publisher: Publisher, now: float, *, open_rollout: bool = False) -> Done | None:
        """Make the version that an act asks for; none where devices have its content already, or it is gone.

        Parameters
        ----------
        act : Acted
            The one that waits.
        publisher : Publisher
            The cohort's.
        now : float
            Unix seconds.
        open_rollout : bool
            Whether some devices have another version than all others.

        Returns
        -------
        Done or None
            None when the version cannot be signed now: the act goes on waiting.
        """
        begins_anew = isinstance(act.act, Rollback)
        payload = publisher.source_payload() if act.content == SOURCE else None
        if payload is None and act.content is not None:
            payload = self._store.artifact(self._cohort, act.content)
        if payload is None:  # an older CEMA has deleted it since
            return Done(msgspec.structs.replace(act, state="failed", done_at=now), None, begins_anew=False)
        device = getattr(act.act, "device", None)
        if device is None and not open_rollout and publisher.offers(payload, now):
            done = msgspec.structs.replace(act, state="done", done_at=now, version=publisher.version)
            return Done(done, None, begins_anew)
        update = publisher.again(payload, now)
        if update is None:
            return None
        done = msgspec.structs.replace(act, state="done", done_at=now, version=update.version)
        return Done(done, update, begins_anew, None if device is None else Offer(audience=(device,)))

    def told(self, done: Done) -> None:
        """Log what was done, once it is durable."""
        act = done.acted
        if act.state == "failed":
            report(log, events.ACT_FAILED, cohort=self._cohort, number=act.number)
            return
        report(
            log,
            events.ACT_DONE,
            cohort=self._cohort,
            act=name_of(act.act),
            number=act.number,
            actor=act.actor,
            version=act.version,
        )
