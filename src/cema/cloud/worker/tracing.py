"""Notes of a worker on the way to the next version: whose samples, which steps, when the gate had its evidence."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cema.cloud.store.base import PublishedUpdate, StoredSample

__all__ = ["STEPS_TRACED", "Tracer"]

# Steps that a trace describes one by one: the newest, and the first.
STEPS_TRACED = 32
# Classes of a model above which a trace does not count predictions by class.
CLASSES_COUNTED = 1000

Labels = npt.NDArray[np.int64]


class _Tested(NamedTuple):
    """What the running version, the adapted model and the foundation model chose for one batch."""

    before: Labels
    after: Labels
    teacher: Labels


class Tracer:
    """What happened in one cohort since its last version.

    It is kept in memory: after a restart of the worker a trace tells of the steps since then, see ``since``.

    Parameters
    ----------
    now : float
        Unix seconds.
    """

    def __init__(self, now: float) -> None:
        self._tested: list[_Tested] = []
        self._begin(now)

    def _begin(self, now: float) -> None:
        self._since = now
        self._steps: list[dict[str, Any]] = []
        self._dropped = 0
        self._samples = 0
        self._replays = 0
        self._outcomes: dict[str, int] = {}
        self._evidence: float | None = None

    def learned(self, samples: Sequence[StoredSample], begin: float, seconds: float) -> None:
        """Note a step that will be committed: its new samples, when it began (unix seconds), and how long it took."""
        if not samples:
            return
        captured = [sample.captured_at for sample in samples]
        received = [sample.received_at for sample in samples]
        self._steps.append(
            {
                "begin": begin,
                "seconds": seconds,
                "samples": len(samples),
                "devices": len({sample.device for sample in samples}),
                "captured": [min(captured), max(captured)],
                "received": [min(received), max(received)],
            }
        )
        self._samples += len(samples)
        if len(self._steps) > STEPS_TRACED:
            del self._steps[1]
            self._dropped += 1

    def replayed(self, stepped: bool) -> None:
        """Note that replaying was tried, and whether there was enough for a step."""
        self._replays += stepped

    def tested(
        self, predictions: Sequence[Labels], teacher: Labels, *, before_update: bool, size: int
    ) -> None:
        """Note what models chose for a batch of new samples, as the gate's window has it.

        Parameters
        ----------
        predictions : sequence of ndarray of int64 (N,)
            Of the adapted model, and of the version that devices run.
        teacher : ndarray of int64 (N,)
            The foundation model's.
        before_update : bool
            See `cema.cloud.worker.gate.BatchAgreement`: one that says nothing of the adapted model begins anew.
        size : int
            Samples that are kept at least, where there are.
        """
        if not before_update:
            self._tested = []
            return
        self._tested.append(_Tested(predictions[1], predictions[0], teacher))
        while sum(len(batch.teacher) for batch in self._tested[1:]) >= size:
            self._tested.pop(0)

    def predictions(self, classes: int) -> dict[str, Any] | None:
        """Return how often each class was chosen: ``before`` the update, ``after`` it, and by the ``teacher``.

        None where nothing is known, as after a start of the worker, and for a model of more than 1000 classes.
        """
        if not self._tested or classes > CLASSES_COUNTED:
            return None
        told: dict[str, Any] = {"classes": classes}
        for name, column in zip(("before", "after", "teacher"), zip(*self._tested, strict=True), strict=True):
            labels = np.concatenate(column)
            known = labels[(labels >= 0) & (labels < classes)]
            told[name] = np.bincount(known, minlength=classes).tolist()
        return told

    def judged(self, outcome: str, now: float) -> None:
        """Note what the gate said of a candidate that it was asked about at `now` (unix seconds)."""
        self._outcomes[outcome] = self._outcomes.get(outcome, 0) + 1
        if outcome != "waiting" and self._evidence is None:
            self._evidence = now

    def traced(
        self, update: PublishedUpdate | None, now: float, about: Callable[[], Mapping[str, Any]]
    ) -> PublishedUpdate | None:
        """Return an update, if there is one, with its trace, and with what it is about; see `take`."""
        if update is None:
            return None
        told = dict(about())
        # What was adapted runs from now on, as in the gate's window; of any other content nothing is known.
        learned = told.get("kind") == "learned"
        self._tested = (
            [_Tested(batch.after, batch.after, batch.teacher) for batch in self._tested] if learned else []
        )
        return replace(update, trace=self.take(now) | told)

    def take(self, now: float) -> dict[str, Any]:
        """Return the trace of the version that is published at `now`, and begin the next one.

        Returns
        -------
        dict
            JSON-able. ``published_at``, ``since`` (the version before, or the start of the worker), ``evidence_at``
            (when the gate first had the samples that it needs; None for a version that is only signed anew),
            ``samples``, ``steps`` (each with ``begin``, ``seconds``, ``samples``, ``devices``, and of its samples the
            first and the last moment at which they were ``captured`` and ``received``), ``steps_left_out`` (those
            between the first and the others that are told), ``replays``, ``outcomes`` (what the gate said, with
            counts). Moments are unix seconds of the cloud's clock; ``captured`` is of the devices' clocks.
        """
        trace = {
            "published_at": now,
            "since": self._since,
            "evidence_at": self._evidence,
            "samples": self._samples,
            "steps": self._steps,
            "steps_left_out": self._dropped,
            "replays": self._replays,
            "outcomes": self._outcomes,
        }
        self._begin(now)
        return trace
