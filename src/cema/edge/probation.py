"""Probation: whether a version that has just been swapped in does on this device what the one before did.

The golden batch shows that a version computes what the cloud meant, and the guard that the inputs are of its domain.
Neither shows that it is any good here. So for its first images the version is on trial: their mean entropy and the
classes that it chooses are compared with those of the version before. Where they are much worse, both versions answer
to the same images, in the background; and if it is worse on these too, the device goes back by itself.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from cema.edge.background import BackgroundThread, Clock, Pause
from cema.edge.config import ProbationConfig
from cema.edge.retry import Backoff
from cema.edge.runtime import Active
from cema.ondevice.preprocess import Images
from cema.ondevice.selection.entropy import softmax_entropy

__all__ = ["Answered", "Probation", "worse"]

# Images that both versions answer to, at most; and bytes of them.
PAIRED, PAIRED_BYTES = 32, 8 << 20
# By how much a mean entropy must be higher, too, as a part of the largest: of two low ones the ratio means little.
LEAST_RISE = 0.05


class Answered(NamedTuple):
    """Sums over some images: how many, their entropies in nats, and how often each class was chosen."""

    images: int
    entropy: float
    chosen: npt.NDArray[np.int64]

    @classmethod
    def nothing(cls, classes: int) -> Answered:
        """Return the sums over no image."""
        return cls(0, 0.0, np.zeros(classes, np.int64))

    @classmethod
    def of(cls, labels: npt.NDArray[np.int64], entropy: npt.NDArray[np.float64], classes: int) -> Answered:
        """Return the sums over images with these labels (N,) and entropies (N,)."""
        return cls(len(labels), float(entropy.sum()), np.bincount(labels, minlength=classes))

    def plus(self, other: Answered) -> Answered:
        """Return the sums over both."""
        return Answered(self.images + other.images, self.entropy + other.entropy, self.chosen + other.chosen)

    @property
    def mean_entropy(self) -> float:
        """In nats; 0 over no image."""
        return self.entropy / self.images if self.images else 0.0

    @property
    def effective_classes(self) -> float:
        """How many classes are chosen, as the exponential of the entropy of their shares."""
        shares = self.chosen[self.chosen > 0] / max(1, self.images)
        return float(np.exp(-(shares * np.log(shares)).sum()))


def worse(now: Answered, before: Answered, config: ProbationConfig) -> str | None:
    """Return how a version is worse than the one before it; None where it is not.

    Examples
    --------
    >>> before = Answered(100, 40.0, np.array([50, 50]))
    >>> worse(Answered(100, 90.0, np.array([50, 50])), before, ProbationConfig())
    'a mean entropy of 0.90 nats, 0.40 before'
    >>> worse(Answered(100, 30.0, np.array([40, 60])), before, ProbationConfig()) is None
    True
    """
    rise = before.mean_entropy + LEAST_RISE * math.log(len(before.chosen))
    if config.entropy and now.mean_entropy > max(config.entropy * before.mean_entropy, rise):
        return f"a mean entropy of {now.mean_entropy:.2f} nats, {before.mean_entropy:.2f} before"
    if now.effective_classes < config.classes * before.effective_classes:
        return f"{now.effective_classes:.1f} classes are chosen, {before.effective_classes:.1f} before"
    return None


class Probation(BackgroundThread):
    """Tries each version that is swapped in.

    Parameters
    ----------
    config : ProbationConfig
    classes : int
        Of the model.
    answer : callable
        Returns the logits (N, C) of a model for images, as it would serve.
    before : callable
        Builds the last good version.
    verdict : callable
        Called with the version, and how it is worse and the last good version, or None and None: it is good.
    clock, backoff, on_change
        See :class:`~cema.edge.background.BackgroundThread`.
    """

    def __init__(
        self,
        config: ProbationConfig,
        classes: int,
        *,
        answer: Callable[[Active, Images], npt.NDArray[np.float32]],
        before: Callable[[], Active],
        verdict: Callable[[int, str | None, Active | None], None],
        clock: Clock,
        backoff: Backoff,
        on_change: Callable[[], None],
    ) -> None:
        super().__init__("probation", clock=clock, backoff=backoff, on_change=on_change)
        self._config = config
        self._answer, self._before, self._verdict = answer, before, verdict
        self._lock = threading.Lock()
        self._begin_anew(classes)

    def _begin_anew(self, classes: int) -> None:
        self._classes = classes
        self._latest = Answered.nothing(classes)
        self._full: Answered | None = None  # the last that were full
        self._reference: Answered | None = None
        self._trial: Active | None = None
        self._phase: Literal["watch", "ask", "decide"] = "watch"
        self._images: list[npt.NDArray[np.uint8]] = []
        self._passed = False

    @property
    def on_trial(self) -> bool:
        """Whether the version that serves has still to show that it is good here."""
        return self._trial is not None

    def restart(self, classes: int) -> None:
        """Forget everything: the model of another bundle serves."""
        with self._lock:
            self._begin_anew(classes)

    def begin(self, active: Active, *, resumed: bool = False) -> None:
        """Put a version on trial; where it was so before a restart, what came before it is not known."""
        with self._lock:
            if self._trial is None:  # else the one before has not shown that it is good
                known = self._full or self._latest
                enough = 2 * known.images >= self._config.images
                self._reference = known if enough else None
            self._trial, self._images, self._passed = active, [], False
            self._phase = "ask" if self._reference is None and resumed else "watch"
            self._latest, self._full = Answered.nothing(self._classes), None

    def renumber(self, active: Active) -> None:
        """Take note that the version on trial has got another number."""
        with self._lock:
            if self._trial is not None:
                self._trial = active

    def end(self) -> None:
        """Take note that another version serves, which needs no trial."""
        with self._lock:
            self._begin_anew(self._classes)

    def note(
        self,
        installed: Active,
        labels: npt.NDArray[np.int64],
        entropy: npt.NDArray[np.float64],
        images: Images,
        *,
        guarded: bool,
    ) -> None:
        """Take in a batch. Any number of threads may call this.

        Parameters
        ----------
        installed : Active
            The version that was installed when it began.
        labels : ndarray of int64 (N,)
        entropy : ndarray of float64 (N,)
            In nats.
        images : as for `EdgeAgent.predict`
            Copied where they are kept.
        guarded : bool
            Whether the source model predicted in its place: then it says nothing of the version.
        """
        if guarded or not len(labels):
            return
        with self._lock:
            if self._trial is not None and installed is not self._trial:
                return
            if self._phase == "watch":
                self._watch(Answered.of(labels, entropy, self._classes))
            elif self._phase == "ask":
                self._ask(images, len(labels))

    def _watch(self, batch: Answered) -> None:
        self._latest = self._latest.plus(batch)
        if self._latest.images < self._config.images:
            return
        if self._trial is None:
            self._full, self._latest = self._latest, Answered.nothing(self._classes)
        elif self._reference is None or worse(self._latest, self._reference, self._config) is None:
            self._decide(passed=self._reference is not None)
        else:
            self._phase = "ask"

    def _ask(self, images: Images, count: int) -> None:
        for i in range(count):
            if len(self._images) < PAIRED and sum(image.nbytes for image in self._images) < PAIRED_BYTES:
                self._images.append(np.array(images[i]))
        if len(self._images) == PAIRED or sum(image.nbytes for image in self._images) >= PAIRED_BYTES:
            self._decide(passed=False)

    def _decide(self, *, passed: bool) -> None:
        # Without anything to compare with, both answer to the same images.
        if not passed and not self._images:
            self._phase = "ask"
            return
        self._phase, self._passed = "decide", passed
        self.notify()

    def step(self) -> Pause:
        """Give the verdict, if there is one to give."""
        with self._lock:
            trial, images, passed = self._trial, self._images, self._passed
            ready = self._phase == "decide"
        if not ready or trial is None:
            return Pause(None)
        if passed:
            self._verdict(trial.version, None, None)
        else:
            before = self._before()
            reason = worse(self._answered(trial, images), self._answered(before, images), self._config)
            self._verdict(trial.version, reason, before if reason else None)
        with self._lock:
            if self._trial is trial:
                good = self._latest
                self._begin_anew(self._classes)
                self._full = good if passed else None
        self.succeeded()
        return Pause(None)

    def _answered(self, active: Active, images: list[npt.NDArray[np.uint8]]) -> Answered:
        logits = self._answer(active, images)
        return Answered.of(logits.argmax(axis=1).astype(np.int64), softmax_entropy(logits), self._classes)
