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
        self._blocks: deque[list[int]] = (
            deque()
        )  # images, pairs of neighbours, and how many of them have one label
        self._labels: deque[npt.NDArray[np.int64]] = deque()  # those of each block
        self._shares = np.zeros(classes)
        self._last: int | None = None

    def observe(self, labels: npt.NDArray[np.int64]) -> None:
        """Take in predicted labels (N,), in the order of the stream."""
        for start in range(0, len(labels), _BLOCK):
            self._add(np.asarray(labels[start : start + _BLOCK], np.int64))

    def _add(self, labels: npt.NDArray[np.int64]) -> None:
        chain = labels if self._last is None else np.concatenate([[self._last], labels])
        self._last = int(labels[-1])
        self._blocks.append([len(labels), len(chain) - 1, int((chain[1:] == chain[:-1]).sum())])
        self._labels.append(labels)
        np.add.at(self._shares, labels, 1.0)
        while sum(block[0] for block in self._blocks) - self._blocks[0][0] >= self.memory:
            self._blocks.popleft()
            np.subtract.at(self._shares, self._labels.popleft(), 1.0)

    def trust(self) -> float:
        """Return in [0, 1] what share of the latest images is worth independent ones; 1 before there are two."""
        images, pairs, same = np.sum(self._blocks, axis=0) if self._blocks else (0, 0, 0)
        if not pairs:
            return 1.0
        chance = float(np.square(self._shares / images).sum())
        if chance >= 1.0:
            # One label throughout: of one class, or of a model that is at its end. Nothing may be taken off then.
            return 0.0 if images >= _BLOCK else 1.0
        r = min(max((same / pairs - chance) / (1.0 - chance), 0.0), 1.0)
        return float(((1.0 - r) / (1.0 + r)) ** 2)
