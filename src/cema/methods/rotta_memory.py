"""The memory bank of RoTTA: category-balanced sampling with timeliness and uncertainty (CSTU).

Yuan et al., "Robust Test-Time Adaptation in Dynamic Scenarios", CVPR 2023.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Generic, TypeVar

__all__ = ["BalancedMemory", "Kept"]

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Kept(Generic[T]):
    """One sample of the memory.

    Attributes
    ----------
    sample : object
        The sample.
    uncertainty : float
        The entropy of its prediction when it came, in nats.
    number : int
        How many samples the memory had been offered before it.
    """

    sample: T
    uncertainty: float
    number: int


class BalancedMemory(Generic[T]):
    r"""Keep samples that are sure and recent, and of each predicted class about as many.

    A sample's score, of which the memory gives up the largest, is

    .. math:: H = \lambda_t \frac{1}{1 + \exp(-A / N)} + \lambda_u \frac{U}{\log C}

    with its age A (how many samples were offered since), its uncertainty U, the capacity N and C classes. A class has a
    place as long as it has fewer than N / C samples. A new sample of such a class is taken as it is while the memory is
    not full, and else for the largest score among the classes with most samples. A new sample of any other class is
    taken for the largest score of its own class. In both cases it must have a smaller score than what goes.

    Parameters
    ----------
    capacity : int
        N, the most samples.
    classes : int
        C, how many classes there are to predict.
    age_weight, entropy_weight : float
        lambda_t and lambda_u.

    Attributes
    ----------
    seen : int
        Samples offered so far.

    Examples
    --------
    >>> memory = BalancedMemory(capacity=2, classes=2)
    >>> [memory.offer(name, label, 0.1) for name, label in (("a", 0), ("b", 0), ("c", 1))]
    [True, True, True]
    >>> [kept.sample for kept in memory.kept()]
    ['b', 'c']
    """

    def __init__(
        self, capacity: int, classes: int, *, age_weight: float = 1.0, entropy_weight: float = 1.0
    ) -> None:
        self.seen = 0
        self._capacity = capacity
        self._share = capacity / classes
        self._age_weight = age_weight
        # With one class there is no uncertainty.
        self._per_nat = entropy_weight / math.log(max(2, classes))
        self._kept: list[list[Kept[T]]] = [[] for _ in range(classes)]

    def offer(self, sample: T, label: int, uncertainty: float) -> bool:
        """Take a sample in, if there is room for it or it is better than another.

        Parameters
        ----------
        sample : object
            Kept as it is.
        label : int
            The predicted class.
        uncertainty : float
            The prediction's entropy in nats.

        Returns
        -------
        bool
            Whether it was taken.
        """
        new = Kept(sample, uncertainty, self.seen)
        taken = self._make_room(label, self._score(new))
        if taken:
            self._kept[label].append(new)
        self.seen += 1
        return taken

    def kept(self) -> list[Kept[T]]:
        """Return what is in the memory, class by class, each in the order in which it came."""
        return [kept for of_class in self._kept for kept in of_class]

    def age(self, kept: Kept[T]) -> float:
        """Return how many samples were offered from this one on, as a fraction of the capacity."""
        return (self.seen - kept.number) / self._capacity

    def _score(self, kept: Kept[T]) -> float:
        return self._age_weight / (1.0 + math.exp(-self.age(kept))) + self._per_nat * kept.uncertainty

    def _make_room(self, label: int, score: float) -> bool:
        """Give up a sample for one of this class and score, if that must be; tell whether there is room."""
        counts = [len(of_class) for of_class in self._kept]
        if counts[label] >= self._share:
            crowded = [label]
        elif sum(counts) < self._capacity:
            return True
        else:
            most = max(counts)
            crowded = [index for index, count in enumerate(counts) if count == most]
        # Of equal scores the last goes, as in the authors' program.
        places = [(index, place) for index in crowded for place in range(counts[index])]
        index, place = max(reversed(places), key=lambda place: self._score(self._kept[place[0]][place[1]]))
        if self._score(self._kept[index][place]) <= score:
            return False
        del self._kept[index][place]
        return True
