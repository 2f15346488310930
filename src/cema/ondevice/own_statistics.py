"""When a device reads the statistics of its own inputs, and what it makes of them.

A reading is a pass of a model that tells every layer's statistics, and answers for its inputs. It costs more than a
pass with statistics that are folded into the weights, so it is made for the first images of a domain and after an
update, and else seldom. The device's model is not known here: the edge agent and the benchmark use the same object.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import msgspec
import numpy.typing as npt

from cema._util.checks import require
from cema.ondevice.window import Blend, StatisticsWindow

__all__ = ["OwnStatistics", "Reading", "StatisticsConfig"]


class StatisticsConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[statistics]``: which statistics a device's normalisation layers use.

    Attributes
    ----------
    source : {"own", "update"}
        Whose: those of its own latest inputs, with an update's or the source model's as a prior; or those of the
        update. A model without BatchNorm has none, and this says nothing.
    prior : float
        How many images the update's statistics count for; before the first update, the source model's. At least 0.
    source_share : float
        What the source model's statistics count for beside all of these, in [0, 1), however many images were read.
        Above 0 it needs a bundle that was exported by a version with this key; such a bundle has a new `base`, so that
        its cohort needs a new name.
    samples : int
        Images over which a device's own statistics are averaged; so many are read when a domain begins. At least
        `read`.
    read : int
        Images that are read after an update, and from time to time; at least 1.
    every : int
        Images from the end of one reading to the next on a steady stream; at least 1.
    """

    source: Literal["own", "update"] = "own"
    prior: float = 16.0
    source_share: float = 0.0
    samples: int = 512
    read: int = 64
    every: int = 2048

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        fits = math.isfinite(self.prior) and self.prior >= 0
        require(fits, "prior", "a finite number of at least 0", self.prior)
        share = self.source_share
        require(0 <= share < 1, "source_share", "a number in [0, 1)", share)
        require(self.read >= 1, "read", "at least 1 image", self.read)
        require(self.samples >= self.read, "samples", f"at least the {self.read} of read", self.samples)
        require(self.every >= 1, "every", "at least 1 image", self.every)


class Reading(NamedTuple):
    """A pass to make.

    Attributes
    ----------
    blend : Blend
        What every layer mixes its inputs' statistics with.
    turn : int
        Of which domain; a pass that ends in another one is of no use.
    """

    blend: Blend
    turn: int


class OwnStatistics:
    """A device's own statistics: what was read, and whether the next inputs are to be read.

    Parameters
    ----------
    prior : ndarray of float32 (2, K)
        The source model's means and variances.
    config : StatisticsConfig
        Its numbers.

    Attributes
    ----------
    window : StatisticsWindow
        What was read.
    """

    def __init__(self, prior: npt.NDArray[Any], config: StatisticsConfig) -> None:
        self.config = config
        self.window = StatisticsWindow(
            prior, weight=config.prior, size=config.samples, share=config.source_share
        )
        self._turn = 0
        self._left = config.samples  # images still to read
        self._since = 0  # images since the last that was read

    @property
    def reading(self) -> bool:
        """Whether the next inputs are to be read."""
        return self._left > 0

    def due(self, count: int) -> bool:
        """Take note of a call with `count` inputs, and tell whether they are to be read."""
        if not count:
            return False
        if not self._left:
            self._since += count
            if self._since < self.config.every:
                return False
            self.renew()
        return True

    def begin(self, count: int) -> Reading:
        """Return the pass to make of a call with `count` inputs."""
        return Reading(self.window.blend(count), self._turn)

    def took(self, reading: Reading, observed: npt.NDArray[Any], count: int) -> bool:
        """Take in what a pass over `count` images observed (2, K).

        Returns
        -------
        bool
            False, and nothing was taken, when it is not finite, or the domain changed meanwhile.
        """
        if reading.turn != self._turn or not self.window.add(observed, count):
            return False
        self._left, self._since = max(0, self._left - count), 0
        return True

    def restart(self) -> None:
        """Forget what was read: the domain changed."""
        self._turn += 1
        self.window.clear()
        self._left = self.config.samples

    def renew(self) -> None:
        """Read the next inputs: the affine parameters changed, and with them what deep layers see.

        Earlier readings stay in the window: to have many images was worth more than to have all of them anew.
        """
        self._left = max(self._left, self.config.read)
