"""Test, then train: which of three models chose the foundation model's label on samples that none had learned from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt

__all__ = ["Batch", "Evidence", "Standing", "agreements"]


class Batch(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the three models did on one batch of new samples, before it was learned from.

    Attributes
    ----------
    count : int
        Samples.
    adapted, running, source : int
        On how many of them the model being adapted, the version that devices run, and the source model chose the
        foundation model's label.
    fair : bool
        False when the batch showed that the environment had changed: the adapted model has learned since then.
    """

    count: int
    adapted: int
    running: int
    source: int
    fair: bool = True


@dataclass(frozen=True)
class Standing:
    """Agreement with the foundation model over a window, as shares; all three on the same samples.

    Attributes
    ----------
    count : int
        Samples.
    adapted, running, source : float
        Shares in [0, 1]; 0 where there are no samples.
    """

    count: int
    adapted: float
    running: float
    source: float


class Evidence(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The newest batches of one environment.

    A model that is judged by samples it has just learned from looks better than it is: with statistics of some dozen
    photographs, EfficientNet-Lite0 passed such a test and lost 7 points on clean images.

    Attributes
    ----------
    batches : list of Batch
        Oldest first.
    """

    batches: list[Batch] = []

    def add(self, batch: Batch, window: int) -> None:
        """Take in a batch; an unfair one begins a new environment. Keep at least `window` samples where there are."""
        if not batch.fair:
            self.batches = []
        self.batches.append(batch)
        while sum(b.count for b in self.batches[1:]) >= window:
            self.batches.pop(0)

    def forget_adapted(self) -> None:
        """Let nothing that was seen so far speak for the adapted model: it is another one now."""
        self.batches = [msgspec.structs.replace(batch, fair=False) for batch in self.batches]

    def running_is(self, model: Literal["adapted", "source"]) -> None:
        """Let what was seen of a model stand for the version that devices run: that is what was just published."""
        known = [batch for batch in self.batches if batch.fair or model == "source"]
        self.batches = [msgspec.structs.replace(batch, running=getattr(batch, model)) for batch in known]

    def of_candidate(self) -> Standing:
        """Return how the models stand on batches that are fair to the adapted one."""
        return _standing([batch for batch in self.batches if batch.fair])

    def of_running(self) -> Standing:
        """Return how the models stand on all batches; ignore what it says of the adapted one."""
        return _standing(self.batches)


def _standing(batches: list[Batch]) -> Standing:
    count = sum(batch.count for batch in batches)

    def share(name: str) -> float:
        return sum(getattr(batch, name) for batch in batches) / count if count else 0.0

    return Standing(count, share("adapted"), share("running"), share("source"))


def agreements(labels: npt.NDArray[np.int64], *answers: npt.NDArray[np.int64]) -> list[int]:
    """Return on how many samples each model's answers (N,) equal the labels (N,)."""
    return [int((answer == labels).sum()) for answer in answers]
