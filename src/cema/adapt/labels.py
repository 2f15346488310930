"""True labels that people have given for some samples: what they change in a step.

The foundation model teaches, and it may be wrong. Where a person has said what is in an image, that counts in its
place. Without any label nothing here changes anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

import torch

from cema.ondevice.batch import Batch

if TYPE_CHECKING:
    import numpy as np

    from cema.adapt.base import LabelsOf, Recall
    from cema.adapt.replay import ReplayBuffer

__all__ = ["UNLABELLED", "Labelled", "TrueLabels", "corrected"]

T = TypeVar("T")
UNLABELLED = -1


class Labelled(NamedTuple, Generic[T]):
    """Samples with true labels, drawn to be learned from again.

    Attributes
    ----------
    items : list
        What stands for them.
    images : Batch
        Theirs.
    labels : torch.Tensor
        Shape (M,), int64, on the CPU.
    """

    items: list[T]
    images: Batch
    labels: torch.Tensor


class TrueLabels(Generic[T]):
    """The true labels of what may be learned from.

    Parameters
    ----------
    buffer : ReplayBuffer
        The samples that may be replayed.
    classes : int
        Of the models; a label that is no class of theirs is none.
    recall : callable
        Returns the images of items, and None for one whose image is gone.
    """

    def __init__(self, buffer: ReplayBuffer[T], classes: int, recall: Recall[T]) -> None:
        self._buffer = buffer
        self._classes = classes
        self._recall = recall
        self.source: LabelsOf[T] | None = None

    def of(self, items: Sequence[T]) -> torch.Tensor | None:
        """Return the labels of items, int64 (N,), `UNLABELLED` for those without; None where none has one."""
        found = self.source(items) if self.source is not None else ()
        if all(label is None for label in found):
            return None
        known = range(self._classes)
        labels = torch.tensor([label if label in known else UNLABELLED for label in found])
        return labels if (labels != UNLABELLED).any() else None

    def joined(self, truth: torch.Tensor | None, count: int, items: Sequence[T]) -> torch.Tensor | None:
        """Return labels `truth` of `count` new uploads, then those of replayed items; None where none has one."""
        replayed = self.of(items)
        if truth is None and replayed is None:
            return None
        parts = [(truth, count), (replayed, len(items))]
        return torch.cat([torch.full((n,), UNLABELLED) if part is None else part for part, n in parts])

    def draw(self, most: int, rng: np.random.Generator, *, newest: int | None) -> Labelled[T]:
        """Draw samples with labels from those that may be replayed, each once.

        Parameters
        ----------
        most : int
            How many, at most.
        rng : numpy.random.Generator
            The only source of chance; not asked where no sample has a label.
        newest : int, optional
            Among this many of the newest samples only.
        """
        among = self._buffer.newest(newest)
        labels = self.of(among)
        if labels is None or most <= 0:
            return Labelled([], Batch(), torch.empty(0, dtype=torch.int64))
        places = torch.nonzero(labels != UNLABELLED).flatten().tolist()
        if len(places) > most:
            places = [places[i] for i in rng.choice(len(places), size=most, replace=False).tolist()]
        images = self._recall([among[place] for place in places])
        there = [(place, image) for place, image in zip(places, images, strict=True) if image is not None]
        kept = [place for place, _ in there]
        return Labelled([among[place] for place in kept], Batch([image for _, image in there]), labels[kept])


def corrected(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return a teacher's logits as they would be if it knew the labels.

    Where a label is not what the teacher chose, the two classes change places: the teacher is as sure as it was, of the
    true class, and what it says of all others stays.

    Parameters
    ----------
    logits : torch.Tensor
        Shape (N, C).
    labels : torch.Tensor
        Shape (N,), int64; `UNLABELLED` leaves a row as it is.

    Returns
    -------
    torch.Tensor
        Shape (N, C); the argmax of a labelled row is its label.

    Examples
    --------
    >>> corrected(torch.tensor([[3.0, 1.0, 0.0], [3.0, 1.0, 0.0]]), torch.tensor([1, UNLABELLED])).tolist()
    [[1.0, 3.0, 0.0], [3.0, 1.0, 0.0]]
    """
    labels = labels.to(logits.device)
    rows = torch.nonzero(labels != UNLABELLED).flatten()
    true, chosen = labels[rows], logits[rows].argmax(dim=-1)
    found = logits.clone()
    found[rows, true], found[rows, chosen] = logits[rows, chosen], logits[rows, true]
    return found
