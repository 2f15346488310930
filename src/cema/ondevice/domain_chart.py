"""The distance of a moving average from one domain, in the coordinates of that domain: a few numbers to keep."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["PIECE", "RATE", "DomainChart", "moving_weights"]

Float64 = npt.NDArray[np.float64]

# The latest nine or so inputs: (2 - rate) / rate.
RATE = 0.2
# Inputs that are taken in at once, at most: the weights of N inputs are N x N numbers.
PIECE = 64
# Inputs after which the weights of all sum to 1 in float64: 0.8^256 is 1e-25.
_FULL = 256


class DomainChart:
    r"""An exponentially weighted average of inputs' statistics, seen from one domain.

    With P the domain's precision, :math:`P = L L^T` and :math:`u = L^T (x - \mu)`, squared standard deviations are
    squared lengths of u, and of the second moment only its trace is needed. So little is computed for an input that
    this takes a third of the time of averages of x and :math:`x x^T`.

    Parameters
    ----------
    mean : ndarray of float (F,)
        The domain's.
    precision : ndarray of float64 (F, F)
        Symmetric and positive definite.
    count : int
        Inputs that were averaged before.
    average : ndarray of float64 (F,)
        Of them: the sum of weight times statistics.
    moment : ndarray of float64 (F, F)
        The sum of weight times statistics times their transpose.
    """

    def __init__(
        self, mean: npt.NDArray[Any], precision: Float64, count: int, average: Float64, moment: Float64
    ) -> None:
        self._mean = mean.astype(np.float64)
        self._whiten: Float64 = np.linalg.cholesky(0.5 * (precision + precision.T)).astype(np.float64)
        self._count = count
        weight = float(_tables()[0, min(count, _FULL)])
        crossed = np.outer(average, self._mean)
        shifted = moment - crossed - crossed.T + weight * np.outer(self._mean, self._mean)
        # The sums of weight times u, and of weight times its squared length.
        self._sums = np.append((average - weight * self._mean) @ self._whiten, np.sum(precision * shifted))

    def distances(self, rows: npt.NDArray[Any]) -> Float64:
        """Take in finite statistics (N, F), N at most `PIECE`, and return the distance after each, (N,)."""
        count, size = rows.shape
        first = min(self._count, _FULL) + 1
        weight, noise, rest, share = _tables()[:, first : first + count]
        self._count += count
        # Of every input u and, behind it, its squared length; before them what was kept.
        sums = np.empty((count + 1, size + 1))
        sums[0] = self._sums
        lengths = sums[1:, :size]
        np.matmul(rows - self._mean, self._whiten, out=lengths)
        np.add.reduce(lengths * lengths, axis=1, out=sums[1:, size])
        averages = _steps(count) @ sums
        self._sums = averages[-1].copy()  # they are divided below
        averages /= weight[:, None]
        latest = averages[:, :size]
        squared: Float64 = np.add.reduce(latest * latest, axis=1)
        alike = (averages[:, size] - squared) / (-size * rest) + 1.0
        np.minimum(np.maximum(alike, 0.0, out=alike), 1.0, out=alike)
        squared /= noise + share * alike
        return squared

    def distance(self, row: npt.NDArray[Any]) -> float:
        """As `distances`, of one input's statistics (F,): without the tables that pay for many."""
        self._count += 1
        weight, noise, rest, share = map(float, _tables()[:, min(self._count, _FULL)])
        lengths = (row - self._mean) @ self._whiten
        sums = self._sums
        sums *= 1.0 - RATE
        sums[:-1] += RATE * lengths
        sums[-1] += RATE * (lengths @ lengths)
        latest = sums[:-1] / weight
        squared = float(latest @ latest)
        alike = 1.0 - (float(sums[-1]) / weight - squared) / (len(latest) * rest)
        return float(squared / (noise + share * min(max(alike, 0.0), 1.0)))


@lru_cache(maxsize=PIECE)
def moving_weights(count: int) -> tuple[Float64, Float64]:
    """Return what is kept (N,) of the average after each of N inputs, and the weights (N, N) of these by then."""
    steps = np.arange(count, dtype=np.float64)
    kept: Float64 = (1.0 - RATE) ** (steps + 1.0)
    ages = steps[:, None] - steps
    weights: Float64 = np.where(ages >= 0, RATE * (1.0 - RATE) ** np.maximum(ages, 0.0), 0.0)
    return kept, weights


@lru_cache(maxsize=PIECE)
def _steps(count: int) -> Float64:
    """Return `moving_weights` as one matrix (N, 1 + N)."""
    kept, weights = moving_weights(count)
    return np.column_stack([kept, weights])


@lru_cache(maxsize=1)
def _tables() -> Float64:
    """Return, by the number of inputs, the sum of weights, that of their squares as a share v, and twice 1 - v."""
    numbers = np.minimum(np.arange(_FULL + PIECE + 1), _FULL).astype(np.float64)
    keep = 1.0 - RATE
    weight = 1.0 - keep**numbers
    squares = RATE**2 * (1.0 - keep ** (2 * numbers)) / (1.0 - keep**2)
    noise = np.divide(squares, weight**2, out=np.ones_like(weight), where=weight > 0)
    # One input has no spread: what it is divided by is then of no account, as it is multiplied by 1 - v.
    rest = np.where(noise > 1.0 - 1e-9, 1.0, 1.0 - noise)
    return np.stack([weight, noise, rest, 1.0 - noise])
