"""Re-centring of logits: take off what a domain adds to all logits alike."""

from __future__ import annotations

import math
from collections import deque
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from cema._util.checks import require

__all__ = ["LogitCentre", "RecentreConfig"]

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]

# Images in a block: long enough to show runs of labels, short enough that there are several soon.
_BLOCK = 32
# Of fewer, the variance is not known well enough to be used.
_FEW_BLOCKS = 4
# Relative to the mean: below it, what is left is rounding.
_NO_VARIANCE = 1e-12


class RecentreConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[recentre]``: whether what a domain adds to all logits alike is taken off.

    Attributes
    ----------
    mode : {"off", "on", "auto"}
        ``auto`` is on for models without running statistics.
    weight : float
        Images after which half of the shift is taken off.
    memory : int
        Images after which older ones are forgotten.
    """

    mode: Literal["off", "on", "auto"] = "off"
    weight: float = 64.0
    memory: int = 1024

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        fits = math.isfinite(self.weight) and self.weight >= 0
        require(fits, "weight", "a finite number of at least 0", self.weight)
        require(self.memory >= 1, "memory", "at least 1 image", self.memory)

    def centre(self, source: npt.NDArray[Any], *, statistics: bool) -> LogitCentre | None:
        """Make a centre for a model with such mean logits (C,), with or without running statistics; None when off."""
        if self.mode == "off" or (self.mode == "auto" and statistics):
            return None
        return LogitCentre(source, weight=self.weight, memory=self.memory)


class LogitCentre:
    r"""Shift logits by how far their mean has moved from the source's, as far as that mean can be trusted.

    .. math:: z' = z - \frac{n_{eff}}{n_{eff} + n_0} (\bar z - \bar z_{source})

    with the mean over the latest images, about `memory`. As the last layer is linear, this is the shift of its
    features in FOA (Niu et al., "Test-Time Model Adaptation with Only Forward Passes", ICML 2024) and in NEO (which
    takes the source's mean feature for zero), with a factor that starts at 0.

    The factor counts independent images. Where labels come in long runs, the mean of the logits is that of the present
    classes and says little about the domain, and images resemble one another. So

    .. math:: n_{eff} = n \min\left(1, \frac{\sigma^2 / B}{V_B}, \frac{1 - r}{1 + r}\right)

    with :math:`\sigma^2` the variance of the logits, summed over classes, :math:`V_B` that of the means of blocks of B
    consecutive images (B is 32, 64, 128 ... as long as there are four blocks; the least counts), and r the correlation
    of consecutive images: the method of batch means, and the effective size of a sample of a first-order autoregressive
    process.

    Parameters
    ----------
    source : ndarray of float (C,)
        Mean logits on clean images.
    weight : float
        n_0, the independent images after which half of the shift is taken off; at least 0.
    memory : int
        Images after which older ones are forgotten, at least 1.

    Examples
    --------
    >>> centre = LogitCentre(np.zeros(2), weight=2)
    >>> centre.observe(np.array([[2.0, 0.0], [2.0, 0.0]], np.float32))
    >>> centre.shifted(np.array([[2.0, 0.0]], np.float32)).tolist()
    [[1.0, 0.0]]
    """

    def __init__(self, source: npt.NDArray[Any], *, weight: float = 64.0, memory: int = 1024) -> None:
        require(np.isfinite(weight) and weight >= 0, "weight", "a finite number of at least 0", weight)
        require(memory >= 1, "memory", "at least 1 image", memory)
        self.source = np.asarray(source, np.float64)
        self.weight, self.memory = float(weight), memory
        self._blocks: deque[_Block] = deque()
        self._last: Float64 | None = None
        self._shift: Float32 | None = None

    @property
    def count(self) -> int:
        """Images that the mean is over."""
        return sum(block.count for block in self._blocks)

    @property
    def mean(self) -> Float64:
        """Their mean logits (C,); the source's before any."""
        if not self._blocks:
            return self.source
        mean: Float64 = np.sum([block.total for block in self._blocks], axis=0) / self.count
        return mean

    def clear(self) -> None:
        """Forget what was observed: the domain changed."""
        self._blocks.clear()
        self._last = self._shift = None

    def observe(self, logits: Float32) -> None:
        """Take in logits (N, C) as the model gave them, in the order of the stream.

        Rows that are not finite say nothing.
        """
        wide = logits.astype(np.float64)
        wide = wide[np.isfinite(wide).all(axis=1)]
        self._shift = None
        while len(wide):
            if not self._blocks or self._blocks[-1].count >= _BLOCK:
                self._blocks.append(_Block(len(self.source)))
            room = _BLOCK - self._blocks[-1].count
            self._blocks[-1].add(wide[:room], self._last)
            self._last, wide = wide[:room][-1], wide[room:]
        # The last block may have few yet, so that never fewer than `memory` are kept.
        while len(self._blocks) > 1 and self.count - self._blocks[0].count >= self.memory:
            self._blocks.popleft()

    def independent(self) -> float:
        """Return how many independent images the mean is worth."""
        count, mean = self.count, self.mean
        square = float(mean @ mean)
        variance = sum(block.squares for block in self._blocks) / count - square if count else 0.0
        pairs = sum(block.pairs for block in self._blocks)
        if variance <= _NO_VARIANCE * max(square, 1.0) or not pairs:
            return float(count)
        product = sum(block.product for block in self._blocks) / pairs
        r = min(max((product - square) / variance, 0.0), 1.0)
        share = (1.0 - r) / (1.0 + r)
        means = np.array([block.total / _BLOCK for block in self._blocks if block.count == _BLOCK])
        size = _BLOCK
        while (
            len(means) >= _FEW_BLOCKS
        ):  # the longest blocks show the longest runs, the shortest ones show them first
            between = float(means.var(axis=0, ddof=1).sum())
            share = min(share, variance / size / between if between > 0 else 1.0)
            even = means[len(means) % 2 :]
            means, size = (even[::2] + even[1::2]) / 2, 2 * size
        return count * share

    def shift(self) -> Float32:
        """Return what is taken off all logits now, float32 (C,)."""
        if self._shift is None:
            worth = self.independent()
            share = worth / (worth + self.weight) if worth else 0.0
            self._shift = (share * (self.mean - self.source)).astype(np.float32)
        return self._shift

    def shifted(self, logits: Float32) -> Float32:
        """Return logits (N, C) less the present shift."""
        return logits - self.shift()


class _Block:
    """Sums over up to `_BLOCK` consecutive images."""

    def __init__(self, classes: int) -> None:
        self.count = self.pairs = 0
        self.total = np.zeros(classes)
        self.squares = self.product = 0.0

    def add(self, rows: Float64, before: Float64 | None) -> None:
        """Take in rows (N, C), N at least 1, that follow on the row `before`."""
        chain = rows if before is None else np.concatenate([before[None], rows])
        self.product += float((chain[1:] * chain[:-1]).sum())
        self.pairs += len(chain) - 1
        self.count += len(rows)
        self.total += rows.sum(axis=0)
        self.squares += float((rows * rows).sum())
