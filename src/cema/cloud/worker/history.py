"""What a cohort's worker sees over time: of committed steps alone, written together."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt

from cema._util.events import report
from cema.adapt.base import Learner
from cema.cloud import events
from cema.cloud.store.agreements import AgreementCount
from cema.cloud.store.base import Store
from cema.cloud.store.draws import RandomCount
from cema.cloud.store.history import BIN_SECONDS, DomainChange, HistoryNote, Measures, added, history_of
from cema.errors import FormatError, StoreError
from cema.ondevice.drift import Domain, InputAverage

__all__ = ["ChangeOfDomain", "HistoryOfSteps"]

log = logging.getLogger(__name__)

# A learner may call its losses anything, and have any number of them.
_NAME = re.compile("[a-z][a-z0-9_]{0,39}")
MOST_LOSSES = 16
# Bins that wait to be written, at most: while the store cannot be written no step is committed either.
MOST_BINS = 64


class HistoryOfSteps:
    """Measures of one cohort, which wait for their step's commit and then to be written.

    That they cannot be written is logged, and fails no step.

    Parameters
    ----------
    store
        One that keeps no history gets none.
    cohort
        The cohort's name.
    """

    def __init__(self, store: Store, cohort: str) -> None:
        self._store, self._cohort = history_of(store), cohort
        self._step: Measures = {}
        self._changed: list[DomainChange] = []
        self._bins: dict[int, Measures] = {}
        self._changes: list[DomainChange] = []
        self._now = self._written_at = -math.inf

    def losses(self, losses: Mapping[str, float]) -> None:
        """Note the losses of the step that is being made."""
        finite = [(n, v) for n, v in losses.items() if math.isfinite(v) and _NAME.fullmatch(n)]
        self._step = added(self._step, {f"loss.{name}": (1, value) for name, value in finite[:MOST_LOSSES]})

    def changed(self, distance: float | None, now: float) -> None:
        """Note that the samples of the step that is being made are the first of another domain, at `now` (unix)."""
        self._changed.append(DomainChange(self._cohort, now, distance))

    def undone(self) -> None:
        """Forget what was noted of a step that is not committed."""
        self._step, self._changed = {}, []

    def committed(self, counts: Iterable[AgreementCount], now: float) -> None:
        """Take note that a step was committed, with these counts of agreement; write once in `BIN_SECONDS`."""
        agreement = [{f"agreement.{c.model}": (c.samples, c.agreed)} for c in counts]
        self._add(added(self._step, *agreement), now)
        self._changes += self._changed
        self.undone()
        if not 0 <= now - self._written_at < BIN_SECONDS:
            self.write()

    def random(self, counts: Iterable[RandomCount], now: float) -> None:
        """Note what was found of samples that were drawn at random: by the predictions that they stand for."""
        self._add(added({}, *({f"random.{c.model}": (c.sums.weight, c.sums.matching)} for c in counts)), now)

    def write(self) -> None:
        """Write what waits."""
        bins, self._bins = self._bins, {}
        changes, self._changes = self._changes, []
        if self._store is None or not (bins or changes):
            return
        self._written_at = self._now
        notes = [HistoryNote(self._cohort, at, measures) for at, measures in bins.items()]
        try:
            self._store.note_history(notes, changes)
        except StoreError as error:
            report(log, events.HISTORY_NOT_NOTED, error=str(error))

    def _add(self, measures: Measures, now: float) -> None:
        self._now = now
        at = int(now // BIN_SECONDS) * BIN_SECONDS
        if measures and (at in self._bins or len(self._bins) < MOST_BINS):
            self._bins[at] = added(self._bins.get(at, {}), measures)


class ChangeOfDomain:
    """Tells, after a learner has learned from a batch, whether it took it for the first of another domain.

    Parameters
    ----------
    learner
        Before it learns.
    batch
        Samples of a whole batch. The one after a change may be taken for mixed, and the domain begins with it anew:
        that is no change more.
    """

    def __init__(self, learner: Learner[int], batch: int) -> None:
        self._known = learner.since_change
        self._domain: Domain | None = learner.domain() if self._known > batch else None
        self._batch = batch

    def found(self, learner: Learner[int], samples: int) -> bool:
        """Return whether it was, of so many samples."""
        return self._known > self._batch and learner.since_change <= samples

    def distance(self, rows: npt.NDArray[np.float32]) -> float | None:
        """Return how far the statistics (N, F) of the batch are from the domain before; None where that is unknown."""
        if self._domain is None or rows.shape[1] != self._domain.mean.size:
            return None
        latest = InputAverage(rows.shape[1])
        latest.observe_all(rows)
        try:
            found = latest.distance(self._domain, self._domain.precision())
        except FormatError:
            return None
        return found if math.isfinite(found) else None
