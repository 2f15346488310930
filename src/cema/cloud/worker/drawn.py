"""Measuring samples that devices drew at random: agreement with the foundation model on all that devices see."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cema._util.events import report
from cema._util.proportion import Weighted
from cema.adapt.base import Learner
from cema.cloud import events
from cema.cloud.store.agreements import Judged
from cema.cloud.store.base import Store
from cema.cloud.store.draws import DrawnSample, RandomCount, draws_of
from cema.cloud.worker.images import read_image
from cema.cloud.worker.publisher import Publisher
from cema.errors import ImageError
from cema.ondevice.batch import Batch

__all__ = ["Answers", "DrawnSamples", "random_counts"]

log = logging.getLogger(__name__)

# Samples measured at once, and how often in one turn: what has come is measured before anything is learned from it.
AT_ONCE, GROUPS = 32, 64


class Answers(NamedTuple):
    """The labels (N,) that models choose for the same images: the foundation model, and three others."""

    foundation: npt.NDArray[np.int64]
    adapted: npt.NDArray[np.int64]
    running: npt.NDArray[np.int64]
    source: npt.NDArray[np.int64]


class DrawnSamples:
    """The drawn samples of one cohort: each is measured once, and then forgotten.

    Nothing is learned from them, they are not replayed, and the gate does not look at them.

    Parameters
    ----------
    store
        Where they wait.
    cohort
        The cohort's name.
    most_pixels
        See `cema.cloud.worker.images.read_image`.
    note
        Gets what was found, once it is kept, and when.
    """

    def __init__(
        self,
        store: Store,
        cohort: str,
        most_pixels: int,
        *,
        note: Callable[[Sequence[RandomCount], float], None] = lambda counts, now: None,
    ) -> None:
        self._store, self._cohort, self._most = draws_of(store), cohort, most_pixels
        self._note = note

    def measure(self, learner: Learner[int], publisher: Publisher, now: float, *, newest: int = 0) -> bool:
        """Measure what waits now (unix seconds); return whether anything did.

        A sample that cannot be measured is tried again, alone, and given up after some tries.

        Raises
        ------
        StoreError
            As the store.
        """
        if self._store is None:
            return False
        for group in range(GROUPS):
            samples = self._store.take_draws(self._cohort, AT_ONCE)
            if not samples:
                return group > 0
            readable, images = self._read(samples)
            try:
                answers = _answers(Batch(images), learner, publisher) if readable else None
                counts = (
                    random_counts(readable, answers, version=publisher.version, newest=newest)
                    if answers
                    else []
                )
            except Exception as error:
                report(log, events.DRAWN_NOT_MEASURED, exc_info=error, cohort=self._cohort)
                return True
            numbers = [sample.number for sample in samples]
            unreadable = len(samples) - len(readable)
            if self._store.measured_draws(self._cohort, numbers, counts, now=now, unreadable=unreadable):
                self._note(counts, now)
        return True

    def _read(self, samples: Sequence[DrawnSample]) -> tuple[list[DrawnSample], list[npt.NDArray[np.uint8]]]:
        readable, images = [], []
        for sample in samples:
            try:
                images.append(read_image(sample.image, self._most))
            except ImageError as error:
                report(log, events.DRAWN_UNREADABLE, cohort=self._cohort, error=str(error))
            else:
                readable.append(sample)
        return readable, images


def _answers(batch: Batch, learner: Learner[int], publisher: Publisher) -> Answers:
    foundation = learner.foundation_logits(batch).argmax(axis=1)
    return Answers(foundation, *publisher.predictions(batch, *publisher.learned(learner)))


def random_counts(
    samples: Sequence[DrawnSample], answers: Answers, *, version: int, newest: int = 0
) -> list[RandomCount]:
    """Return the sums of some samples by version and model.

    Parameters
    ----------
    samples : sequence of DrawnSample
        With what devices answered.
    answers : Answers
        The models' labels of these samples.
    version : int
        The newest version that is for all devices.
    newest : int
        The newest that any device was offered, if that is another. A device that names a newer one is not counted: it
        may say anything.
    """

    def sums(labels: Sequence[int], chosen: Sequence[int]) -> Weighted:
        return Weighted.of((samples[i].share, labels[i] == answers.foundation[i].item()) for i in chosen)

    everything = range(len(samples))
    models: dict[Judged, npt.NDArray[np.int64]] = {
        "running": answers.running,
        "adapted": answers.adapted,
        "source": answers.source,
    }
    found = [
        RandomCount(version, model, sums(labels.tolist(), everything)) for model, labels in models.items()
    ]
    own = [sample.label for sample in samples]
    for each in sorted({sample.version for sample in samples if sample.version <= max(version, newest)}):
        chosen = [i for i in everything if samples[i].version == each]
        found.append(RandomCount(each, "device", sums(own, chosen)))
    return found
