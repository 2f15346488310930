"""Re-centring of logits: take off what a domain adds to all logits alike."""

from __future__ import annotations

import math
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from cema._util.checks import require

__all__ = ["LogitCentre", "RecentreConfig"]

Float32 = npt.NDArray[np.float32]


class RecentreConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[recentre]``: whether what a domain adds to all logits alike is taken off.

    Attributes
    ----------
    mode : {"off", "on", "auto"}
        Whether what a domain adds to all logits alike is taken off. ``auto`` is on for models without running
        statistics whose mean logits on clean images are known (``cema export --clean``).
    weight : float
        Images after which half of the shift is taken off; at least 0.
    memory : int
        Images after which older ones are forgotten; at least 1.
    """

    mode: Literal["off", "on", "auto"] = "auto"
    weight: float = 64.0
    memory: int = 1024

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        fits = math.isfinite(self.weight) and self.weight >= 0
        require(fits, "weight", "a finite number of at least 0", self.weight)
        require(self.memory >= 1, "memory", "at least 1 image", self.memory)

    def centre(
        self, source: npt.NDArray[Any] | None, *, classes: int, statistics: bool
    ) -> LogitCentre | None:
        """Make a centre, unless it is off.

        Parameters
        ----------
        source : ndarray of float (C,) or None
            Mean logits on clean images, where they are known; zeros in their place when it is on.
        classes : int
            C.
        statistics : bool
            Whether the model has running statistics.
        """
        if self.mode == "off" or (self.mode == "auto" and (statistics or source is None)):
            return None
        known = np.zeros(classes) if source is None else source
        return LogitCentre(known, weight=self.weight, memory=self.memory)


class LogitCentre:
    r"""Shift logits by how far their mean has moved from the source's.

    .. math:: z' = z - \frac{t n}{t n + n_0} (\bar z - \bar z_{source})

    with n the images so far, at most `memory`, the mean over about as many, and t the share of them that is worth
    independent images (`cema.ondevice.label_runs.LabelRuns`): where labels come in long runs, the mean is that of the
    present classes. As the last layer is linear, this is the shift of its features in FOA (Niu et al., "Test-Time Model
    Adaptation with Only Forward Passes", ICML 2024) and in NEO (which takes the source's mean feature for zero), with
    a factor that starts at 0.

    Parameters
    ----------
    source : ndarray of float (C,)
        Mean logits on clean images.
    weight : float
        n_0, the images after which half of the shift is taken off; at least 0.
    memory : int
        Images after which older ones are forgotten, at least 1.

    Examples
    --------
    >>> centre = LogitCentre(np.zeros(2), weight=2)
    >>> centre.observe(np.array([[2.0, 0.0], [2.0, 0.0]], np.float32))
    >>> centre.shift().tolist()
    [1.0, 0.0]
    """

    def __init__(self, source: npt.NDArray[Any], *, weight: float = 64.0, memory: int = 1024) -> None:
        require(np.isfinite(weight) and weight >= 0, "weight", "a finite number of at least 0", weight)
        require(memory >= 1, "memory", "at least 1 image", memory)
        self.source = np.asarray(source, np.float64)
        self.weight, self.memory = float(weight), memory
        self.mean = self.source.copy()
        self.count = 0

    def clear(self) -> None:
        """Forget what was observed: the domain changed."""
        self.mean, self.count = self.source.copy(), 0

    def observe(self, logits: Float32) -> None:
        """Take in logits (N, C) as the model gave them; rows that are not finite say nothing."""
        wide = logits.astype(np.float64)
        wide = wide[np.isfinite(wide).all(axis=1)]
        if not len(wide):
            return
        self.count = min(self.count + len(wide), max(self.memory, len(wide)))
        self.mean += len(wide) / self.count * (wide.mean(axis=0) - self.mean)

    def shift(self, trust: float = 1.0) -> Float32:
        """Return what is taken off all logits now, float32 (C,); `trust` in [0, 1] is t."""
        worth = trust * self.count
        share = worth / (worth + self.weight) if worth else 0.0
        shift: Float32 = (share * (self.mean - self.source)).astype(np.float32)
        return shift
