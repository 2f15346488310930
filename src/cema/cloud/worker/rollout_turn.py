"""What a cohort's worker does about an open rollout, in one of its turns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from cema.adapt.base import Learner
from cema.cloud.store.base import PublishedUpdate
from cema.cloud.store.offers import Offer
from cema.cloud.worker.canary import Judgement
from cema.cloud.worker.checkpoint import Progress
from cema.cloud.worker.publisher import DAY, Publisher
from cema.cloud.worker.rollouts import Rollouts

__all__ = ["Worker", "roll_out"]


class Worker(Protocol):
    """What is needed of a `cema.cloud.worker.cohort.CohortWorker`."""

    publisher: Publisher
    learner: Learner[int]
    progress: Progress
    cursor: int

    def commit(
        self,
        cursor: int,
        update: PublishedUpdate | None = None,
        *,
        about: Mapping[str, Any] | None = None,
        offer: Offer | None = None,
    ) -> None:
        """Make the worker's state durable whole, with an update and with what is offered, if there is any."""


def roll_out(worker: Worker, rollouts: Rollouts, now: float, *, publishes: bool) -> bool:
    """Release the version of the open rollout, take it back, or wait for other devices.

    Parameters
    ----------
    worker : Worker
    rollouts : Rollouts
        The cohort's.
    now : float
        Unix seconds.
    publishes : bool
        Whether what is learned may be published; else nothing is released, but all the same taken back.

    Returns
    -------
    bool
        Whether anything was done.
    """
    publisher = worker.publisher
    if rollouts.released_by_others(publisher.version):
        worker.progress.acted()
        publisher.resume(rollouts.for_all())
        worker.commit(worker.cursor)
        return True
    found = rollouts.judged(now)
    if found is None:
        return _renew_pin(worker, rollouts, now)
    if found.decision == "take_back":
        return _take_back(worker, rollouts, found, now)
    if not publishes:
        return False
    if found.decision == "wait":
        worker.commit(worker.cursor, offer=rollouts.extended(found, now))
        return True
    worker.progress.acted()
    worker.commit(worker.cursor, offer=rollouts.released(now))
    publisher.resume(rollouts.for_all())
    return True


def _renew_pin(worker: Worker, rollouts: Rollouts, now: float) -> bool:
    """Sign what a pinned device has anew, before it expires: a device that lost it could not install it again."""
    publisher = worker.publisher
    due = rollouts.pin_due(now, publisher.config.lifetime_days * DAY / 2)
    if due is None or not publisher.unsigned.may_try(now):
        return False
    device, payload = due
    update = publisher.again(payload, now)
    if update is not None:
        worker.commit(worker.cursor, update, about={"kind": "renewed"}, offer=Offer(audience=(device,)))
    return update is not None


def _take_back(worker: Worker, rollouts: Rollouts, found: Judgement, now: float) -> bool:
    """Let the content before go out to all under the next number, and begin anew: what was learned spoiled devices."""
    publisher = worker.publisher
    if not publisher.unsigned.may_try(now):
        return False
    before = rollouts.for_all()
    update = publisher.again(publisher.source_payload() if before is None else before.payload, now)
    if update is None:
        return False
    about = {"kind": "taken back", "content_of": before.version if before else 0, "reasons": found.reasons}
    worker.learner.restart()
    worker.progress.acted()
    worker.commit(worker.cursor, update, about=about, offer=rollouts.taken_back(found, now))
    return True
