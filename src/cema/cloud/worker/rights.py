"""What people decide about stored samples, as a cohort's worker does it: deletions, ages, and true labels."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from cema._util.events import report
from cema.adapt.base import Forgets, Learner, TakesLabels
from cema.cloud import events
from cema.cloud.config import CohortConfig
from cema.cloud.store.base import Store, StoredSample
from cema.cloud.store.data import DataFilter, DataStore, TeacherLabel, ToForget
from cema.cloud.worker.checkpoint import Progress
from cema.cloud.worker.images import DecodedImages
from cema.errors import ConfigError

__all__ = ["RightsOfData"]

log = logging.getLogger(__name__)

DAY = 86_400.0
# How often it is looked for samples that are too old, at least.
EXPIRY_SECONDS = 3600.0
# How long it waits at first, and at most, where the store's files are being read and cannot be rewritten.
RETRY_SECONDS, LONGEST_RETRY = 5.0, 600.0


class RightsOfData:
    """A cohort's deletions, its samples' age, and the labels that people have given.

    Parameters
    ----------
    store
        Where samples are; from one that does not delete them, nothing is deleted.
    cohort
        The cohort's settings.

    Raises
    ------
    ConfigError
        The store cannot delete what is too old.
    """

    def __init__(self, store: Store, cohort: CohortConfig) -> None:
        self._store = store if isinstance(store, DataStore) else None
        self._cohort = cohort.name
        self._days = cohort.retention_days
        self._algorithm = cohort.adapt.algorithm
        self._expired_at: float | None = None
        self._tried_at: float | None = None
        self._retry = RETRY_SECONDS
        self._labels: dict[int, int] = {}
        self._labels_taken: int | None = None
        self._taught: list[TeacherLabel] = []
        self._forgotten: tuple[int, ...] = ()
        if self._days and self._store is None:
            raise ConfigError(
                f"retention_days: the store of cohort {self._cohort!r} cannot delete samples; set it to 0"
            )

    def ready(self, learner: Learner[int]) -> Learner[int]:
        """Return a new learner, which learns the true labels if it can, and can forget what is too old.

        Raises
        ------
        ConfigError
            It cannot.
        """
        if self._days and not isinstance(learner, Forgets):
            raise ConfigError(
                f"retention_days: the algorithm {self._algorithm} cannot forget samples; give it the method forget "
                "(cema.adapt.base.Forgets), or set retention_days to 0"
            )
        if isinstance(learner, TakesLabels):
            learner.labels_from(self._truths)
        return learner

    def _truths(self, seqs: Sequence[int]) -> list[int | None]:
        return [self._labels.get(seq) for seq in seqs]

    def look(self, progress: Progress, now: float) -> ToForget | None:
        """Read new labels, and delete what is too old; return what is to be forgotten now, or None."""
        if self._store is None:
            return None
        self._expire(now)
        pending = self._store.pending(self._cohort)
        if pending.labels != self._labels_taken:
            self._labels, self._labels_taken = self._store.true_labels(self._cohort), pending.labels
            if self._labels:  # they are learned also where no new samples come
                progress.idle = 0
        if not pending.deletion:
            return None
        found = self._store.go_on_deleting(self._cohort, now=now)
        if found.deletions:
            return found
        if not _within(self._tried_at, now, self._retry):
            self.committed(now)  # forgotten before, but the files were not rewritten
        return None

    def _expire(self, now: float) -> None:
        period = min(EXPIRY_SECONDS, self._days * DAY / 24)
        if self._store is None or not self._days or _within(self._expired_at, now, period):
            return
        self._expired_at = now
        receipt = self._store.expire_data(self._cohort, until=now - self._days * DAY, now=now)
        if receipt is not None:
            report(log, events.SAMPLES_EXPIRED, cohort=self._cohort, samples=receipt.samples, days=self._days)

    def forget(
        self, gone: ToForget, learner: Learner[int], progress: Progress, images: DecodedImages
    ) -> bool:
        """Forget samples, in what the next commit makes durable.

        Returns
        -------
        bool
            False when the learner cannot forget: a new one has to take its place.
        """
        can = isinstance(learner, Forgets)
        if can:
            learner.forget(gone.seqs)  # type: ignore[attr-defined]
        else:
            progress.window.forget_adapted()
        images.forget(gone.seqs)
        for seq in gone.seqs:
            self._labels.pop(seq, None)
        progress.held = [seq for seq in progress.held if seq not in gone.seqs]
        for receipt in gone.receipts:
            which = receipt.filter
            if which.everything:
                progress.ledger.devices.clear()
            elif which.device is not None and which == DataFilter(device=which.device):
                progress.ledger.devices.pop(which.device, None)
        self._forgotten = gone.deletions
        return can

    def taught(self, samples: Sequence[StoredSample], labels: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Take note of the foundation model's labels of samples, for the next commit; return the labels that count.

        Those are the true ones, where people have given them.
        """
        pairs = [
            TeacherLabel(sample.seq, label) for sample, label in zip(samples, labels.tolist(), strict=True)
        ]
        self._taught += pairs
        return np.array([self._labels.get(seq, label) for seq, label in pairs], np.int64)

    def undo(self) -> None:
        """Leave out of the next commit what was noted since the last."""
        self._taught, self._forgotten = [], ()

    def committed_with(self) -> dict[str, Any]:
        """Return what the store is to keep with a step."""
        taught, forgotten = self._taught, self._forgotten
        self.undo()
        return {} if self._store is None else {"taught": taught, "forgotten": forgotten}

    def committed(self, now: float) -> None:
        """Have the store's files rewritten after something was forgotten, and say what is done."""
        if self._store is None:
            return
        done = self._store.finish_deletions(self._cohort, now=now)
        again = not done and self._tried_at is not None
        self._retry = min(2 * self._retry, LONGEST_RETRY) if again else RETRY_SECONDS
        self._tried_at = None if done else now
        for receipt in done:
            report(
                log, events.DATA_FORGOTTEN,
                cohort=self._cohort, number=receipt.number, actor=receipt.actor, samples=receipt.samples,
            )  # fmt: skip


def _within(since: float | None, now: float, seconds: float) -> bool:
    """Tell whether a moment is less long ago; a clock that was set back does not make it wait."""
    return since is not None and 0 <= now - since < seconds
