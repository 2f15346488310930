"""A model's statistics over a device's own latest inputs, with what was known before as a prior."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cema._util.checks import require
from cema.errors import FormatError

__all__ = ["Blend", "StatisticsWindow", "union_of"]

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]


class Blend(NamedTuple):
    """What a pass over n inputs is to mix its own statistics with, in every layer.

    With a known mean and variance m_k and v_k, those of the pass m and v, and the source model's m_s and v_s,

        mean     = (1 - s) ((1 - r) m_k + r m)                                + s m_s
        variance = (1 - s) ((1 - r) v_k + r v + r (1 - r) (m - m_k)^2)        + s v_s

    The part in brackets is that of the union of what is known and of the pass.

    Attributes
    ----------
    known : ndarray of float32 (2, K)
        Means and variances of all channels.
    rate : float
        r, in [0, 1]: what the pass's own count for in the union.
    source : ndarray of float32 (2, K), optional
        The source model's means and variances; not needed for a share of 0.
    share : float
        s, in [0, 1).
    """

    known: Float32
    rate: float
    source: Float32 | None = None
    share: float = 0.0


class StatisticsWindow:
    r"""Means and variances of the union of a prior and the latest inputs that were read.

    With m_i and v_i those of part i, which counts for n_i images,

    .. math:: m = \sum_i \frac{n_i}{n} m_i, \qquad v = \sum_i \frac{n_i}{n} \big(v_i + (m_i - m)^2\big)

    The prior is the source's, or an update's, and counts for a fixed number of images however many were read (Schneider
    et al., "Improving robustness against common corruptions by covariate shift adaptation", NeurIPS 2020, whose
    variance lacks the second term). With a share s, the result is (1 - s) times these and s times the source's, as
    theirs is for s = N / (N + n).

    Parameters
    ----------
    prior : ndarray of float (2, K)
        Means and variances that are known before any input: the source's.
    weight : float
        How many images they count for; at least 0.
    size : int
        How many images are kept, at least 1: the oldest part goes when the others are as many. Passes over few images
        make a part together, of an eighth of them, so that memory is bounded.
    share : float
        What the source's count for in the result, in [0, 1), however many inputs were read.

    Raises
    ------
    ValueError
        When a number is out of its range.

    Examples
    --------
    >>> window = StatisticsWindow(np.array([[0.0], [1.0]]), weight=2, size=4)
    >>> window.add(np.array([[1.0], [1.0]]), 2)
    True
    >>> window.current().tolist()
    [[0.5], [1.25]]
    """

    def __init__(self, prior: npt.NDArray[Any], *, weight: float, size: int, share: float = 0.0) -> None:
        require(np.isfinite(weight) and weight >= 0, "weight", "a finite number of at least 0", weight)
        require(size >= 1, "size", "at least 1 image", size)
        require(0 <= share < 1, "share", "a number in [0, 1)", share)
        self.source: Float32 = np.asarray(prior, np.float32)
        self.prior = self.source
        self.share = float(share)
        self.weight = float(weight)
        self.size = size
        self._entries: list[tuple[int, Float32]] = []
        self._current: Float32 | None = None
        self._trust = 1.0

    @property
    def count(self) -> int:
        """Images that were read and are kept."""
        return sum(count for count, _ in self._entries)

    def clear(self) -> None:
        """Forget what was read: the domain changed."""
        self._entries, self._current = [], None

    def begin_at(self, prior: npt.NDArray[Any]) -> None:
        """Take other means and variances (2, K) for the prior: those that an update was learned with."""
        if prior is not self.prior:
            self.prior, self._current = np.asarray(prior, np.float32), None

    def trust(self, share: float) -> None:
        """Let every image that was read, and those to come, count for such a share, in [0, 1], beside the prior.

        Where labels come in long runs, images are worth less than as many independent ones.
        """
        if share != self._trust:
            self._trust, self._current = share, None

    def add(self, observed: npt.NDArray[Any], count: int) -> bool:
        """Take in what a pass observed.

        Parameters
        ----------
        observed : ndarray of float (2, K)
            Its means and unbiased variances.
        count : int
            Its images, at least 1.

        Returns
        -------
        bool
            False, and nothing was taken, when a value is not finite or a variance negative: damaged inputs do that.
        """
        flat = np.asarray(observed, np.float32)
        if flat.shape != self.prior.shape:
            raise FormatError(f"expected statistics {self.prior.shape}, got {flat.shape}: of another model")
        if count < 1 or not np.isfinite(flat).all() or (flat[1] < 0).any():
            return False
        if self._entries and 8 * (self._entries[-1][0] + count) <= self.size:
            last = self._entries.pop()
            self._entries.append((last[0] + count, union_of([last, (count, flat)]).astype(np.float32)))
        else:
            self._entries.append((count, flat.copy()))
        self._entries, self._current = self._kept(self.size), None
        return True

    def blend(self, count: int) -> Blend:
        """Return what a pass over `count` images is to mix its statistics with, so that all are those after `add`."""
        entries = self._kept(self.size - count)
        own = self._trust * count
        total = self.weight + self._trust * sum(known for known, _ in entries) + own
        return Blend(self._union(entries), own / total if total else 0.0, self.source, self.share)

    def current(self) -> Float32:
        """Return means and variances of prior and inputs, float32 (2, K): the same array until they change."""
        if self._current is None:
            union = self._union(self._entries)
            self._current = (1 - self.share) * union + self.share * self.source if self.share else union
        return self._current

    def _union(self, entries: list[tuple[int, Float32]]) -> Float32:
        parts = [(self._trust * count, flat) for count, flat in entries if self._trust]
        prior = [(self.weight, self.prior)] if self.weight or not parts else []
        return union_of([*prior, *parts]).astype(np.float32)

    def _kept(self, room: int) -> list[tuple[int, Float32]]:
        """Return the newest parts, without the oldest as long as the others fill the room."""
        entries, total = list(self._entries), self.count
        while entries and total - entries[0][0] >= room:
            total -= entries.pop(0)[0]
        return entries


def union_of(parts: Sequence[tuple[float, npt.NDArray[Any]]]) -> Float64:
    """Return means and variances (2, K) of the union of parts, each with its images and its means and variances."""
    counts = np.array([count for count, _ in parts], np.float64)
    flat = np.stack([statistics for _, statistics in parts]).astype(np.float64)
    # A single part of no images is what it says.
    share = (counts / counts.sum() if counts.sum() else np.ones(len(parts)) / len(parts))[:, None]
    mean = (share * flat[:, 0]).sum(axis=0)
    variance = (share * (flat[:, 1] + (flat[:, 0] - mean) ** 2)).sum(axis=0)
    return np.stack([mean, variance])
