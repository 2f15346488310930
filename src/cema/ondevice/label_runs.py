"""Whether labels come in runs: then the latest images say more about the present classes than about the domain."""

from __future__ import annotations

from collections import deque

import numpy as np
import numpy.typing as npt

from cema._util.checks import require

__all__ = ["LabelRuns"]

_BLOCK = 32


class LabelRuns:
    r"""How far the latest images can be taken for independent, from the labels that were predicted for them.

    With s the share of neighbours with one label and p the share of each label among the latest images,

    .. math:: r = \max\left(0, \frac{s - \sum_c p_c^2}{1 - \sum_c p_c^2}\right), \qquad
              \mathrm{trust} = \left(\frac{1 - r}{1 + r}\right)^2

    r is what neighbours agree beyond chance (Cohen, "A Coefficient of Agreement for Nominal Scales", 1960): 0 for a
    shuffled stream, also where a model that is biased by a domain predicts few classes, and near 1 where labels come in
    long runs. (1 - r) / (1 + r) is the share of a first-order chain that is worth independent samples. It is squared,
    because wrong predictions cut runs into pieces, so that they look shorter than they are.

    Parameters
    ----------
    classes : int
        C, at least 2.
    memory : int
        Images after which older ones are forgotten, about.

    Examples
    --------
    >>> runs = LabelRuns(2)
    >>> runs.observe(np.array([0, 1] * 100))
    >>> runs.trust()
    1.0
    >>> runs.observe(np.repeat([0, 1], 1000))
    >>> runs.trust() < 0.01
    True
    """

    def __init__(self, classes: int, *, memory: int = 1024) -> None:
        require(classes >= 2, "classes", "at least 2 classes", classes)
        require(memory >= 1, "memory", "at least 1 image", memory)
        self.memory = memory
        self._blocks: deque[_Block] = deque()
        self._shares = [0] * classes
        self._images = self._pairs = self._same = 0
        self._last: int | None = None

    def observe(self, labels: npt.NDArray[np.int64]) -> None:
        """Take in predicted labels (N,), in the order of the stream."""
        for label in labels.tolist():
            if not self._blocks or len(self._blocks[-1].labels) >= _BLOCK:
                self._blocks.append(_Block())
            self._add(self._blocks[-1], label)
        while self._blocks and self._images - len(self._blocks[0].labels) >= self.memory:
            self._forget(self._blocks.popleft())

    def _add(self, block: _Block, label: int) -> None:
        pair, same = self._last is not None, self._last == label
        block.labels.append(label)
        block.pairs += pair
        block.same += same
        self._images += 1
        self._pairs += pair
        self._same += same
        self._shares[label] += 1
        self._last = label

    def _forget(self, block: _Block) -> None:
        self._images -= len(block.labels)
        self._pairs -= block.pairs
        self._same -= block.same
        for label in block.labels:
            self._shares[label] -= 1

    def trust(self) -> float:
        """Return in [0, 1] what share of the latest images is worth independent ones; 1 before there are two."""
        if not self._pairs:
            return 1.0
        chance = sum((share / self._images) ** 2 for share in self._shares)
        if chance >= 1.0:
            # One label throughout: of one class, or of a model that is at its end. Nothing may be taken off then.
            return 0.0 if self._images >= _BLOCK else 1.0
        r = min(max((self._same / self._pairs - chance) / (1.0 - chance), 0.0), 1.0)
        return float(((1.0 - r) / (1.0 + r)) ** 2)


class _Block:
    """Up to `_BLOCK` consecutive labels, how many of them have a neighbour before, and how many of these are alike."""

    __slots__ = ("labels", "pairs", "same")

    def __init__(self) -> None:
        self.labels: list[int] = []
        self.pairs = self.same = 0
