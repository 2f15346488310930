"""Which predictions are sent whatever the selection says."""

from __future__ import annotations

import math
import random

import numpy as np
import numpy.typing as npt

__all__ = ["RandomShare"]


class RandomShare:
    """Draws each prediction with the same probability, whatever is in the image.

    The number of predictions until the next one is drawn in place of a number for each: a call in which none is drawn
    costs a subtraction. Not thread-safe.

    Parameters
    ----------
    share : float
        The probability; 0 for never.
    seed : int, optional
        Of the draws; the system's when left out, so that no two devices, and no two runs of one, draw alike.

    Examples
    --------
    >>> RandomShare(1.0).draw(3).tolist(), RandomShare(0.0).draw(3).tolist()
    ([True, True, True], [False, False, False])
    """

    def __init__(self, share: float, seed: int | None = None) -> None:
        self.share = share
        self._random = random.Random(seed)  # noqa: S311 - chance, not secrecy
        self._left = self._gap()

    def draw(self, count: int) -> npt.NDArray[np.bool_]:
        """Return which of the next `count` predictions are drawn, (count,)."""
        drawn = np.zeros(count, dtype=np.bool_)
        at = self._left
        while at < count:
            drawn[int(at)] = True
            at += 1 + self._gap()
        self._left = at - count
        return drawn

    def _gap(self) -> float:
        """Return how many predictions are not drawn before the next one is: geometric."""
        if not 0 < self.share < 1:
            return 0.0 if self.share else math.inf
        return math.floor(math.log1p(-self._random.random()) / math.log1p(-self.share))
