"""The second filter of ETA: a sample whose prediction is like the average one teaches nothing new.

Niu et al., "Efficient Test-Time Model Adaptation without Forgetting", ICML 2022, eqn. 5. The published program of CEMA
selects with it too.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["RedundancyFilter"]

# Below this a norm would divide by nothing.
_SMALLEST_NORM = 1e-8


class RedundancyFilter:
    """Pass the samples whose prediction is unlike the moving average of those that passed.

    ``|cos(p(x), m)| < epsilon``, ``m <- a m + (1 - a) mean of p(x) over those that passed``. The first samples have no
    average to be like: all pass and start it.

    Parameters
    ----------
    margin : float
        The cosine similarity epsilon, in [0, 1]; at 1 only exact copies of the average are redundant.
    average : float
        How much of the average stays at each update, in [0, 1).

    Attributes
    ----------
    mean : ndarray of float64 (C,) or None
        The moving average m; None before the first samples. Assign it to go on where another filter stood.

    Examples
    --------
    >>> filter = RedundancyFilter(0.5)
    >>> filter.passes(np.array([[9.0, 0.0]])).tolist()
    [True]
    >>> filter.passes(np.array([[9.0, 0.0], [0.0, 9.0]])).tolist()
    [False, True]
    """

    def __init__(self, margin: float, average: float = 0.9) -> None:
        self.margin = margin
        self.mean: npt.NDArray[np.float64] | None = None
        self._keep = average

    def passes(self, logits: npt.ArrayLike) -> npt.NDArray[np.bool_]:
        """Decide about one call's samples, and move the average to those that pass.

        Parameters
        ----------
        logits : array_like of float (N, C)
            N may be 0.

        Returns
        -------
        ndarray of bool (N,)
        """
        p = _softmax(np.asarray(logits, np.float64))
        unlike = np.ones(len(p), np.bool_)
        if self.mean is not None:
            norms = np.linalg.norm(p, axis=1) * np.linalg.norm(self.mean)
            unlike = np.abs(p @ self.mean) / np.maximum(norms, _SMALLEST_NORM) < self.margin
        if unlike.any():
            mean = p[unlike].mean(axis=0)
            self.mean = mean if self.mean is None else self._keep * self.mean + (1.0 - self._keep) * mean
        return unlike


def _softmax(logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    if not len(logits):
        return logits
    mass = np.exp(logits - logits.max(axis=1, keepdims=True))
    share: npt.NDArray[np.float64] = mass / mass.sum(axis=1, keepdims=True)
    return share
