"""What a model's inputs look like, in a handful of numbers: enough to tell one domain from another.

Weather, dust and cameras show in brightness, contrast, colour cast and in how much detail there is at which scale.
A device measures these on its own inputs; an update says what they were for the inputs it was made from.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from cema.errors import FormatError
from cema.ondevice.domain_chart import PIECE, RATE, DomainChart, moving_weights

__all__ = [
    "Domain",
    "DriftMonitor",
    "InputAverage",
    "input_statistics",
    "statistics_names",
    "statistics_size",
]

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]

# The middle of the input says as much, in a third of the time that all 224 x 224 pixels take.
_SIDE = 128
_SCALES = 3
# Keeps logarithms finite; about half a step of 8 bits in inputs of unit variance.
_FLOOR = 0.01
# Regularises the covariance: differences below a tenth of the standard deviation, or 0.02, are ignored. A device sees
# its inputs before they were compressed for the upload.
_SPREAD, _LEAST = 0.1, 0.02
# The share of the limit below which inputs are of the domain again.
_RETURN = 0.5


def input_statistics(batch: Float32) -> Float32:
    """Describe each input by brightness, contrast, colour cast and detail at three scales.

    Parameters
    ----------
    batch : ndarray of float32 (N, C, H, W)
        Preprocessed inputs.

    Returns
    -------
    ndarray of float32 (N, F)
        Mean and log deviation of the grey image; for three channels how far red and blue are from green; at each of
        three scales, each half of the one before, the log of the mean absolute difference of neighbours, along rows
        and along columns. F is at most 10, and the same for all batches of one shape.
    """
    count, channels, height, width = batch.shape
    top, left = max(0, height - _SIDE) // 2, max(0, width - _SIDE) // 2
    middle = batch[:, :, top : top + _SIDE, left : left + _SIDE]
    grey = np.ascontiguousarray(middle[:, 0]) if channels == 1 else middle.sum(axis=1) / np.float32(channels)
    sizes = _sizes(channels, *grey.shape[1:])
    first = 4 if channels == 3 else 2
    # Plain sums, divided together at the end: numpy's mean, std and diff take longer than the work on a small image.
    statistics = np.empty((count, len(sizes)), np.float32)
    _sum(grey, statistics[:, 0])
    deviation = grey - (statistics[:, 0] / sizes[0])[:, None, None]
    _sum(np.multiply(deviation, deviation, out=deviation), statistics[:, 1])
    if channels == 3:
        colour = np.add.reduce(middle, axis=(2, 3))
        statistics[:, 2:4] = colour[:, ::2] - colour[:, 1:2]
    for column in range(first, len(sizes), 2):
        if column > first:
            grey = _halve(grey)
        _sum_of_differences(grey[:, :, 1:], grey[:, :, :-1], statistics[:, column])
        _sum_of_differences(grey[:, 1:], grey[:, :-1], statistics[:, column + 1])
    statistics /= sizes
    np.sqrt(statistics[:, 1], out=statistics[:, 1])
    for logs in (statistics[:, 1:2], statistics[:, first:]):
        np.log(np.add(logs, np.float32(_FLOOR), out=logs), out=logs)
    return statistics


@lru_cache(maxsize=16)
def _sizes(channels: int, height: int, width: int) -> Float32:
    """Return how many numbers each statistic of such an input is the mean of."""
    sizes = [height * width] * (4 if channels == 3 else 2)
    for _ in range(_SCALES):
        if min(height, width) < 2:
            break
        sizes += [height * (width - 1), (height - 1) * width]
        height, width = height // 2, width // 2
    return np.array(sizes, np.float32)


def statistics_size(channels: int, height: int, width: int) -> int:
    """Return F of `input_statistics` for inputs of that shape."""
    return len(_sizes(channels, min(height, _SIDE), min(width, _SIDE)))


def statistics_names(channels: int, size: int) -> tuple[str, ...]:
    """Return what each of the F = `size` statistics of `input_statistics` is.

    Examples
    --------
    >>> statistics_names(1, 4)
    ('brightness', 'contrast', 'detail along rows, full size', 'detail along columns, full size')
    """
    names = ["brightness", "contrast", *(["red cast", "blue cast"] if channels == 3 else [])]
    for scale in ("full size", "half size", "quarter size"):
        names += [f"detail along rows, {scale}", f"detail along columns, {scale}"]
    return tuple(names[:size])


def _sum(values: Float32, out: Float32) -> None:
    np.add.reduce(values, axis=(1, 2), out=out)


def _sum_of_differences(values: Float32, neighbours: Float32, out: Float32) -> None:
    difference = values - neighbours
    _sum(np.abs(difference, out=difference), out)


def _halve(grey: Float32) -> Float32:
    even = grey[:, : grey.shape[1] // 2 * 2, : grey.shape[2] // 2 * 2]
    rows = even[:, ::2] + even[:, 1::2]
    halved: Float32 = (rows[:, :, ::2] + rows[:, :, 1::2]) * np.float32(0.25)
    return halved


@dataclass(frozen=True, eq=False)
class Domain:
    """Where, and how widely, the statistics of a further input are to be expected.

    Attributes
    ----------
    mean : ndarray of float32 (F,)
    covariance : ndarray of float32 (F, F)

    Raises
    ------
    FormatError
        When they are not finite, do not fit each other, or the covariance is not symmetric with a diagonal of at
        least 0.
    """

    mean: Float32
    covariance: Float32

    def __post_init__(self) -> None:
        size = self.mean.size
        if self.mean.ndim != 1 or not size or self.covariance.shape != (size, size):
            raise FormatError(
                f"expected an environment's mean (F,) and covariance (F, F), got shapes {self.mean.shape} and "
                f"{self.covariance.shape}"
            )
        if not np.isfinite(self.mean).all() or not np.isfinite(self.covariance).all():
            raise FormatError("expected an environment of finite numbers, got NaN or infinity")
        if (self.covariance != self.covariance.T).any() or (np.diag(self.covariance) < 0).any():
            raise FormatError("expected a covariance that is symmetric, with a diagonal of at least 0")

    @classmethod
    def of(cls, rows: npt.NDArray[Any]) -> Domain:
        r"""Return the domain of inputs with these statistics, (N, F).

        The covariance is that of another input given these, wider than theirs because N is finite:

        .. math:: \frac{N + 1}{N} \frac{N - 1}{N - F - 2} S

        Its inverse is what S, of so few, overstates: by four for N = 16 and F = 10.

        Raises
        ------
        ValueError
            When N is not at least F + 3: how widely they lie is not known.
        """
        count, size = rows.shape
        if count < size + 3:
            raise ValueError(f"expected at least {size + 3} inputs for {size} statistics, got {count}")
        wide = np.asarray(rows, np.float64)
        covariance = np.cov(wide, rowvar=False).reshape(size, size)
        covariance *= (count + 1) / count * (count - 1) / (count - size - 2)
        return cls(
            wide.mean(axis=0).astype(np.float32), (0.5 * (covariance + covariance.T)).astype(np.float32)
        )

    def precision(self) -> Float64:
        """Return the inverse of the covariance with ignored differences added to it, float64 (F, F).

        Raises
        ------
        FormatError
            When the covariance is so far from being one that there is no such inverse.
        """
        spread = np.diag(self.covariance).astype(np.float64)
        widened = self.covariance.astype(np.float64) + np.diag(_SPREAD**2 * spread + _LEAST**2)
        if np.linalg.eigvalsh(widened)[0] <= 0:
            raise FormatError("expected a covariance, got a matrix with a negative eigenvalue")
        inverse: Float64 = np.linalg.inv(widened).astype(np.float64)
        return inverse


class InputAverage:
    """The exponentially weighted mean of the latest inputs' statistics, and how far it is from a domain.

    A multivariate exponentially weighted control chart (Lowry, Woodall, Champ and Rigdon, "A Multivariate
    Exponentially Weighted Moving Average Control Chart", Technometrics 34(1), 1992), made fit for cameras: their
    consecutive images resemble one another, so that the mean of nine may say no more than one. How much it does is
    read from how widely the latest inputs lie, compared with the domain.

    Parameters
    ----------
    size : int
        F.
    """

    def __init__(self, size: int) -> None:
        self._count = 0
        self._weight = 0.0
        self._squares = 0.0
        self._mean = np.zeros(size)
        self._moment = np.zeros((size, size))
        # What was compared with a domain is averaged some inputs at a time: only another domain needs the average.
        self._waiting: list[Float64] = []
        self._chart: DomainChart | None = None
        self._precision: Float64 | None = None  # of the chart's domain

    def observe(self, row: npt.NDArray[Any]) -> None:
        """Take in the statistics (F,) of one input; ones that are not finite say nothing."""
        self._settle()
        wide = row.astype(np.float64)
        if not math.isfinite(wide @ wide):
            return
        self._chart = None
        keep = 1.0 - RATE
        self._count += 1
        self._weight = keep * self._weight + RATE
        self._squares = keep**2 * self._squares + RATE**2
        self._mean = keep * self._mean + RATE * wide
        self._moment = keep * self._moment + RATE * (wide[:, None] * wide)

    def observe_all(self, rows: npt.NDArray[Any]) -> None:
        """Take in the statistics (N, F) of inputs, in their order, as `observe` one after the other."""
        self._settle()
        self._chart = None
        self._take_in(_finite_rows(rows))

    def _take_in(self, wide: Float64) -> None:
        for start in range(0, len(wide), PIECE):
            piece = wide[start : start + PIECE]
            kept, weights = moving_weights(len(piece))
            last = weights[-1]
            self._count += len(piece)
            self._weight = kept[-1] * self._weight + last.sum()
            self._squares = kept[-1] ** 2 * self._squares + last @ last
            self._mean = kept[-1] * self._mean + last @ piece
            self._moment = kept[-1] * self._moment + (last[:, None] * piece).T @ piece

    def _settle(self) -> None:
        """Average what waits."""
        waiting, self._waiting = self._waiting, []
        if waiting:
            self._take_in(np.concatenate(waiting))

    def distances(self, rows: npt.NDArray[Any], domain: Domain, precision: Float64) -> Float64:
        """Take in the statistics (N, F) of inputs, and return the `distance` after each that is finite.

        Calls with the same `precision`, the very same array, go on with what is known of the domain.
        """
        if self._chart is None or precision is not self._precision:
            self._settle()
            self._chart = DomainChart(domain.mean, precision, self._count, self._mean, self._moment)
            self._precision = precision
        wide = _finite_rows(rows)
        if len(wide):
            self._waiting.append(wide)
            if sum(map(len, self._waiting)) >= PIECE:
                self._settle()
        if len(wide) == 1:
            return np.array([self._chart.distance(wide[0])])
        pieces = [self._chart.distances(wide[at : at + PIECE]) for at in range(0, len(wide), PIECE)]
        return pieces[0] if len(pieces) == 1 else np.concatenate([np.empty(0), *pieces])

    def distance(self, domain: Domain, precision: Float64) -> float:
        r"""Return how unlikely the latest inputs are in a domain, in squared standard deviations of their mean.

        .. math:: T^2 = \frac{d^T P d}{v + (1 - v)(1 - r)}

        with d from the domain's mean to the mean of the inputs, P the `precision`, v the sum of the squared
        weights, and r in [0, 1] how widely the inputs lie, as a share of what independent ones would. About F in the
        domain itself; 0 before the first input.
        """
        self._settle()
        if not self._weight:
            return 0.0
        mean = self._mean / self._weight
        shift = mean - domain.mean
        squared = float(shift @ precision @ shift)
        noise = self._squares / self._weight**2
        within = float(np.sum(precision * (self._moment / self._weight - np.outer(mean, mean))))
        independent = len(mean) * (1.0 - noise)
        alike = 1.0 - min(1.0, max(0.0, within / independent)) if independent > 1e-9 else 0.0
        return squared / (noise + (1.0 - noise) * alike)


class DriftMonitor:
    """Tells whether the latest inputs are of the domain that an update was made for.

    Parameters
    ----------
    limit : float
        The distance (:meth:`InputAverage.distance`) above which they are not; then they are again within half of it.

    Attributes
    ----------
    drifted : bool
        Whether they are not.
    """

    def __init__(self, limit: float) -> None:
        self.drifted = False
        self._limit = limit
        self._average: InputAverage | None = None
        self._environment: Domain | None = None
        self._precision: Float64 = np.empty((0, 0))

    def enter(self, domain: Domain | None) -> None:
        """Compare with this domain from now on; None goes with any input. Forget what was found of another."""
        self.drifted = False
        self._environment = domain
        if domain is not None:
            self._precision = domain.precision()

    def observe(self, rows: Float32) -> None:
        """Take in the statistics (N, F) of inputs, in their order."""
        if self._average is None:
            self._average = InputAverage(rows.shape[1])
        if self._environment is None:
            self._average.observe_all(rows)
        else:
            distances = self._average.distances(rows, self._environment, self._precision).tolist()
            if len(rows) == 1 and not distances:  # it says nothing by itself: what came before is judged
                distances = [self._average.distance(self._environment, self._precision)]
            for distance in distances:
                self._judge(distance)

    def _judge(self, distance: float) -> None:
        self.drifted = distance > self._limit * (_RETURN if self.drifted else 1.0)


def _finite_rows(rows: npt.NDArray[Any]) -> Float64:
    wide = rows.astype(np.float64)
    finite = np.isfinite(wide)
    return wide if finite.all() else wide[finite.all(axis=1)]
