"""Averaging over views where the model is unsure: which inputs, and which views."""

from __future__ import annotations

import math
from collections.abc import Callable

import msgspec
import numpy as np
import numpy.typing as npt

from cema._util.checks import require
from cema.ondevice.selection.entropy import softmax_entropy
from cema.ondevice.views import make_views, mean_logits, view_of

__all__ = ["UnsureViews", "ViewSet", "ViewsConfig"]

Float32 = npt.NDArray[np.float32]

# Images over which the mean entropy is taken, about.
_MEMORY = 1024


class ViewSet(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which mild views of an image are averaged.

    Attributes
    ----------
    count : int
        Views, the image itself included; 1 for no others.
    shift : int
        Pixels of the model's input by which views are shifted, at least 1.
    mirror : bool
        Whether every second view is a mirror image: not for digits, letters and signs.
    """

    count: int = 1
    shift: int = 1
    mirror: bool = False

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        require(self.count >= 1, "count", "at least 1 view", self.count)
        require(self.shift >= 1, "shift", "at least 1 pixel", self.shift)


class ViewsConfig(ViewSet, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[views]``: averaging the predictions for several mild views of an image that the model is unsure about.

    Attributes
    ----------
    count, shift, mirror
        See `ViewSet`.
    above : float
        An image is seen in several views when its entropy is above this many times the mean entropy; 0 for all.
    """

    shift: int = 2
    above: float = 0.5

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        super().__post_init__()
        require(
            math.isfinite(self.above) and self.above >= 0,
            "above",
            "a finite number of at least 0",
            self.above,
        )


class UnsureViews:
    """Sees inputs again in several views, where their entropy is above a share of its mean.

    Parameters
    ----------
    config : ViewsConfig
        Which views, and above which entropy.
    """

    def __init__(self, config: ViewsConfig) -> None:
        self.config = config
        self._others = make_views(config.count, shift=config.shift, mirror=config.mirror)[1:]
        self._mean, self._count = 0.0, 0

    def __bool__(self) -> bool:
        """Tell whether there is more than one view."""
        return bool(self._others)

    def places(self, logits: Float32) -> npt.NDArray[np.intp]:
        """Return the places of inputs that the model is unsure about, after their entropies have entered the mean.

        Parameters
        ----------
        logits : ndarray of float32 (N, classes)
            What the model gave for them as they are; finite.
        """
        if not self._others or not len(logits):
            return np.empty(0, np.intp)
        entropy = softmax_entropy(logits)
        self._count = min(self._count + len(entropy), max(_MEMORY, len(entropy)))
        self._mean += len(entropy) / self._count * (float(entropy.mean()) - self._mean)
        return np.flatnonzero(entropy > self.config.above * self._mean)

    def average(
        self,
        inputs: Float32,
        logits: Float32,
        places: npt.NDArray[np.intp],
        run: Callable[[Float32], Float32],
    ) -> Float32:
        """Return logits (N, classes): those of mean probabilities over views at the places, the others as they were.

        Parameters
        ----------
        inputs : ndarray of float32 (N, C, H, W)
            Preprocessed.
        logits : ndarray of float32 (N, classes)
            What the model gave for them as they are.
        places : ndarray of int (M,)
            From `places`.
        run : callable
            Returns logits (M, classes) of inputs (M, C, H, W); called once for each view but the first.
        """
        if not len(places):
            return logits
        seen = inputs[places]
        averaged = logits.copy()
        averaged[places] = mean_logits([logits[places], *(run(view_of(seen, view)) for view in self._others)])
        return averaged
