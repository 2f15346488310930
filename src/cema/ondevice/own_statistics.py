"""When a device reads the statistics of its own inputs, from which of them, and what it makes of them.

The device's model is not known here: whoever has it makes the pass that a `Reading` asks for. The edge agent and the
benchmark use the same object.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from cema._util.checks import require
from cema.ondevice.own_domain import OwnDomain
from cema.ondevice.refresh import RefreshSchedule
from cema.ondevice.window import Blend, StatisticsWindow

__all__ = ["OwnStatistics", "Reading", "StatisticsConfig"]

Float32 = npt.NDArray[np.float32]


class StatisticsConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[statistics]``: which statistics a device's normalisation layers use.

    Attributes
    ----------
    source : {"own", "update"}
        Those of its own latest inputs, with the source model's as a prior; or those that an update brings. A model
        without BatchNorm has none, and this says nothing.
    prior : float
        How many images the source model's statistics count for.
    samples : int
        Images over which a device's own statistics are averaged.
    ring : int
        Latest inputs that are kept to read statistics from.
    every : int
        Images from one reading to the next on a steady stream; at first there are more.
    limit : float
        How unlike its first ones the inputs of a domain must become to be of another
        (`cema.ondevice.own_domain.OwnDomain`): then reading begins anew. 0 for never.
    """

    source: Literal["own", "update"] = "own"
    prior: float = 16.0
    samples: int = 192
    ring: int = 64
    every: int = 2048
    limit: float = 36.0

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        for name in ("prior", "limit"):
            value = getattr(self, name)
            require(math.isfinite(value) and value >= 0, name, "a finite number of at least 0", value)
        require(self.ring >= 1, "ring", "at least 1 image", self.ring)
        require(self.samples >= self.ring, "samples", f"at least the {self.ring} of ring", self.samples)
        require(self.every >= self.ring, "every", f"at least the {self.ring} of ring", self.every)


@dataclass(frozen=True, eq=False)
class Reading:
    """A pass that is to be made.

    Attributes
    ----------
    inputs : ndarray of float32 (N, C, H, W)
        Preprocessed inputs, in the order of the stream.
    blend : Blend
        What every layer mixes their statistics with.
    again : bool
        Whether some of them were in the pass before.
    answers : bool
        Whether the inputs are exactly those of the call that asked: then the pass can answer it too.
    turn : int
        Of which domain; a pass that ends in another one is of no use.
    """

    inputs: Float32
    blend: Blend
    again: bool
    answers: bool
    turn: int


class OwnStatistics:
    """A device's own statistics: the latest inputs, what was read from them, and when to read again.

    Parameters
    ----------
    prior : ndarray of float32 (2, K)
        The source model's means and variances.
    config : StatisticsConfig
        Its numbers.
    """

    def __init__(self, prior: npt.NDArray[Any], config: StatisticsConfig) -> None:
        self.config = config
        self.window = StatisticsWindow(prior, weight=config.prior, size=config.samples)
        self.schedule = RefreshSchedule(ring=config.ring, every=config.every)
        self.domain = OwnDomain(config.limit, size=max(16, config.ring))
        self.turn = 0
        self._ring: list[Float32] = []
        self._unread = 0

    def observe(self, inputs: Float32, rows: Float32) -> Reading | None:
        """Take in the inputs of a call, and return the pass to make now, if one is due.

        Parameters
        ----------
        inputs : ndarray of float32 (N, C, H, W)
            Preprocessed; they are copied.
        rows : ndarray of float32 (N, F)
            Their :func:`cema.ondevice.drift.input_statistics`.
        """
        if not len(inputs):
            return None
        if self.domain.observe(rows):
            self.restart()
        self._keep(inputs)
        self._unread += len(inputs)
        return self.reading(inputs) if self.schedule.due(len(inputs)) else None

    def restart(self) -> None:
        """Forget all inputs: the domain changed."""
        self.turn += 1
        self.window.clear()
        self.schedule.restart()
        self._ring, self._unread = [], 0

    def renew(self) -> None:
        """Read again at the next call: the affine parameters changed, and with them what deep layers see.

        Earlier readings stay in the window: to have many images was worth more than to have all of them anew.
        """
        self.schedule.soon(1)

    def reading(self, inputs: Float32) -> Reading:
        """Return a pass over a call's inputs where they are many, and else over all that are kept."""
        many = 2 * len(inputs) >= self.config.ring or len(inputs) >= sum(map(len, self._ring))
        chosen = inputs if many else np.concatenate(self._ring)
        again = self._unread < len(chosen)
        self._unread = 0
        return Reading(chosen, self.window.blend(len(chosen), again=again), again, many, self.turn)

    def took(self, reading: Reading, observed: npt.NDArray[Any]) -> Float32 | None:
        """Take in what a pass observed (2, K), and return the statistics to run with from now on (2, K).

        None when they are of no use: they are not finite, or the domain changed meanwhile.
        """
        if reading.turn != self.turn:
            return None
        if not self.window.add(observed, len(reading.inputs), again=reading.again):
            return None
        return self.window.current()

    def _keep(self, inputs: Float32) -> None:
        self._ring.append(np.array(inputs[-self.config.ring :], np.float32))
        while sum(map(len, self._ring[1:])) >= self.config.ring:
            self._ring.pop(0)
        over = sum(map(len, self._ring)) - self.config.ring
        if over > 0:
            self._ring[0] = self._ring[0][over:]
