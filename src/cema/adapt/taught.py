"""Replayed samples with what the foundation model answers for them, most of it from before."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

import torch

from cema.adapt.replay import ReplayBuffer
from cema.adapt.targets import Targets
from cema.ondevice.batch import Batch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    import numpy as np

    from cema.adapt.base import Recall

__all__ = ["Replayed", "TaughtReplay"]

T = TypeVar("T")


class Replayed(NamedTuple):
    """Samples that are learned from again.

    Attributes
    ----------
    images : Batch
        Theirs.
    targets : torch.Tensor
        The foundation model's logits, shape (N, classes), float32, on the CPU.
    dropped : int
        Items that had no image any more.
    items : sequence
        What stands for them.
    """

    images: Batch
    targets: torch.Tensor
    dropped: int
    items: Sequence[Any] = ()


class TaughtReplay(Generic[T]):
    """A replay buffer, and the foundation model's answers for what is in it.

    An answer is made where a sample is new, which costs nothing there, and made again for a few of those that are
    replayed in each step. So its age is bounded by how often a sample is drawn, and the cost of a step is not that of
    passing all replayed samples through the large model.

    Parameters
    ----------
    buffer : ReplayBuffer
        The samples.
    classes : int
        Of the models.
    recall : callable
        Returns the images of items, and None for one whose image is gone.
    refreshed : int
        Answers to make again among those drawn.
    """

    def __init__(self, buffer: ReplayBuffer[T], classes: int, recall: Recall[T], refreshed: int) -> None:
        self.buffer = buffer
        self.targets = Targets(classes)
        self._recall = recall
        self._refreshed = refreshed

    def add(self, items: Sequence[T], logits: torch.Tensor | None = None) -> None:
        """Store new samples, and what the foundation model answered for them if it did."""
        if logits is not None and self.buffer.capacity:
            self.targets.put(items, logits)
        self.targets.forget(self.buffer.add(items))

    def draw(
        self,
        count: int,
        rng: np.random.Generator,
        *,
        newest: int | None,
        teacher: Callable[[Batch], torch.Tensor],
        refresh: bool = True,
        certain: Sequence[T] = (),
    ) -> Replayed:
        """Draw samples and find their answers.

        Parameters
        ----------
        count : int
            Samples.
        rng : numpy.random.Generator
            The only source of chance.
        newest : int, optional
            Draw among this many of the newest samples only.
        teacher : callable
            Returns the foundation model's logits (N, classes) of images.
        refresh : bool
            Whether some answers are made again although they are known.
        certain : sequence
            Samples that are drawn in any case, in the place of others.
        """
        asked_again = self._refreshed if refresh else 0
        drawn = self._mostly_known(self.buffer.draw(count, rng, newest=newest), newest, rng)
        if certain:
            taken = {id(item) for item in certain}
            free = [item for item in drawn if id(item) not in taken]
            drawn = [*free[: max(0, count - len(certain))], *certain]
        images = self._recall(drawn)
        gone = [item for item, image in zip(drawn, images, strict=True) if image is None]
        self.buffer.discard(gone)
        self.targets.forget(gone)
        there = [(item, image) for item, image in zip(drawn, images, strict=True) if image is not None]
        again = [pair for place, pair in enumerate(there) if self._is_asked(place, pair[0], asked_again)]
        known = [pair for place, pair in enumerate(there) if not self._is_asked(place, pair[0], asked_again)]
        asked, others = (Batch([image for _, image in pairs]) for pairs in (again, known))
        remembered = self.targets.get([item for item, _ in known])
        answers = [remembered]
        if again:
            logits = teacher(asked).float().cpu()
            self.targets.put([item for item, _ in again], logits)
            answers.insert(0, logits)
        items = [item for item, _ in (*again, *known)]
        return Replayed(Batch.joined(asked, others), torch.cat(answers), len(gone), items)

    def _is_asked(self, place: int, item: T, asked_again: int) -> bool:
        return place < asked_again or item not in self.targets

    def _mostly_known(self, drawn: list[T], newest: int | None, rng: np.random.Generator) -> list[T]:
        """Put samples with an answer in the place of those drawn without, but for as many as are asked for anyway."""
        unknown = [i for i, item in enumerate(drawn) if i >= self._refreshed and item not in self.targets]
        if not unknown or not len(self.targets):
            return drawn
        taken = {id(item) for item in drawn}
        known = [
            item for item in self.buffer.newest(newest) if item in self.targets and id(item) not in taken
        ]
        places = rng.choice(len(known), size=min(len(unknown), len(known)), replace=False).tolist()
        for i, place in zip(unknown, places, strict=False):
            drawn[i] = known[place]
        return drawn

    def state(self) -> tuple[object, dict[str, torch.Tensor]]:
        """Return the samples as JSON can hold them, and their answers as tensors, for `load`."""
        return self.buffer.state(), self.targets.state(self.buffer.items())

    def load(self, items: Iterable[T] | Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
        """Restore what `state` returned."""
        self.buffer.load(items)
        self.targets.load(self.buffer.items(), tensors)
