r"""Which samples are worth sending: the softmax entropy and the thresholds on it.

The edge agent and the benchmark use these objects, so that a number in a table is a statement about the
product.

References
----------
.. [1] Chen et al., "Towards Robust and Efficient Cloud-Edge Elastic Model Adaptation via Selective Entropy
   Distillation", ICLR 2024.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from cema.errors import ConfigError, FormatError, LogitsError

__all__ = ["Average", "Decision", "EntropySelector", "Reason"]

Average: TypeAlias = Literal["running", "exponential"]

# A mean entropy below this (nats) carries no scale to follow, and would make the ratio of means meaningless.
_SMALLEST_AVERAGE = 1e-12


class Reason(StrEnum):
    """Why a sample was, or was not, selected."""

    SELECTED = "selected"
    UNRELIABLE = "unreliable"
    """Its entropy is at or above ``E_max``: the prediction is too uncertain to learn from."""
    UNINFORMATIVE = "uninformative"
    """Its entropy is at or below ``E_min``: there is nothing left to learn from it."""


@dataclass(frozen=True, slots=True, eq=False)
class Decision:
    """What an `EntropySelector` decided about one call's samples.

    Attributes
    ----------
    selected : ndarray of bool (N,)
        Which samples to upload.
    reasons : tuple of Reason
        One per sample.
    e_max : float
        The upper threshold that was used, in nats.
    """

    selected: npt.NDArray[np.bool_]
    reasons: tuple[Reason, ...]
    e_max: float


class EntropySelector:
    r"""Decide which samples of a stream to upload: those with ``E_min < E(x) < E_max``.

    The upper threshold follows the stream, as in the entropy-based sample filtration of [1]_:

    .. math:: E_{max}^t = \lambda \, E_{max}^{t-1} \, \frac{E_{avg}^t}{E_{avg}^{t-1}}

    where `t` counts batches and ``E_avg^t`` is the mean entropy of the stream up to batch `t`. Samples gather
    over calls; a call after which at least `group` are pending completes a batch of all that are pending, and
    the threshold moves *before* that call's samples are decided. The first batch only sets ``E_avg``. At most
    one batch is completed per call; with ``group=1`` every call with samples is a batch.

    Parameters
    ----------
    num_classes : int
        The number of classes C, at least 2.
    e_min, e_max : float, default 0.02 and 0.4
        ``E_min`` and the initial ``E_max^0``, as fractions of ``ln C``: ``0 <= e_min < e_max <= 1``.
    decay : float, default 1.0
        λ. It multiplies at every batch, so that any value but 1 compounds (0.99 for 100 batches is 0.37);
        ``E_max`` is therefore clamped to ``[E_min, ln C]`` after every step.
    average : {"running", "exponential"}, default "running"
        ``E_avg`` as the mean over all samples so far, or as an exponential mean over batches.
    momentum : float, default 0.1
        The weight of a new batch in the exponential mean, in (0, 1].
    group : int, default 64
        How many samples make a batch, for devices that predict a few at a time.
    floor : float, default 1.0
        ``E_max`` never decides below this many times ``E_avg``; 0 is the rule of [1]_ alone. A stream that is hard from
        its first batch has most of its entropies above ``E_max^0``, and the ratio, which only follows changes since
        then, never opens: nothing is sent where help is needed most.

    Raises
    ------
    ConfigError
        If a parameter is out of its range.

    Notes
    -----
    While ``E_avg`` is zero (below 1e-12 nats) there is no ratio to take: it counts as 1. The floor bounds what
    decides, not the recursion: ``E_max^t`` itself goes on from ``E_max^{t-1}``.

    References
    ----------
    .. [1] Chen et al., ICLR 2024.

    Examples
    --------
    >>> selector = EntropySelector(10, group=1)
    >>> [str(reason) for reason in selector.select(np.array([0.01, 0.5, 2.0])).reasons]
    ['uninformative', 'selected', 'unreliable']
    """

    def __init__(
        self,
        num_classes: int,
        *,
        e_min: float = 0.02,
        e_max: float = 0.4,
        decay: float = 1.0,
        average: Average = "running",
        momentum: float = 0.1,
        group: int = 64,
        floor: float = 1.0,
    ) -> None:
        if num_classes < 2:
            raise ConfigError(f"expected num_classes >= 2, got {num_classes}")
        if not 0 <= e_min < e_max <= 1:
            raise ConfigError(
                f"expected 0 <= e_min < e_max <= 1 (fractions of ln C), got e_min={e_min} and e_max={e_max}"
            )
        if not (math.isfinite(decay) and decay > 0):
            raise ConfigError(f"expected a finite decay > 0, got {decay}; 1 keeps the threshold undecayed")
        if average not in ("running", "exponential"):
            raise ConfigError(f'expected average to be "running" or "exponential", got {average!r}')
        if not 0 < momentum <= 1:
            raise ConfigError(f"expected a momentum in (0, 1], got {momentum}")
        if group < 1:
            raise ConfigError(f"expected a group of at least 1 sample, got {group}")
        if not (math.isfinite(floor) and floor >= 0):
            raise ConfigError(f"expected a finite floor >= 0, got {floor}; 0 is the paper's rule alone")
        self._settings: dict[str, Any] = {
            "num_classes": int(num_classes),
            "e_min": float(e_min),
            "e_max": float(e_max),
            "decay": float(decay),
            "average": str(average),
            "momentum": float(momentum),
            "group": int(group),
            "floor": float(floor),
        }
        self._ceiling = math.log(num_classes)
        self._e_min = e_min * self._ceiling
        self._e_max = e_max * self._ceiling
        self._average: float | None = None
        # Samples seen in completed batches, and those pending for the next one: their sums and their numbers.
        self._total, self._count = 0.0, 0
        self._pending_total, self._pending_count = 0.0, 0

    @property
    def e_min(self) -> float:
        """The lower threshold, in nats."""
        return self._e_min

    @property
    def e_max(self) -> float:
        """The upper threshold that decides after the last completed batch, in nats."""
        lowest: float = self._settings["floor"] * (self._average or 0.0)
        return min(max(self._e_max, lowest), self._ceiling)

    def select(self, entropy: npt.ArrayLike) -> Decision:
        """Decide about one call's samples, moving the threshold first if they complete a batch.

        Parameters
        ----------
        entropy : array_like of float (N,)
            Softmax entropies in nats; N may be 0.

        Returns
        -------
        Decision
            One verdict per sample, and the threshold that was used.

        Raises
        ------
        LogitsError
            If `entropy` is not one-dimensional or holds NaN or infinity; the selector is then unchanged.
        """
        values = np.asarray(entropy, dtype=np.float64)
        if values.ndim != 1:
            raise LogitsError(f"expected entropies of shape (N,), got shape {values.shape}")
        if not np.isfinite(values).all():
            raise LogitsError(
                "expected finite entropies, got NaN or infinity: check the logits they came from"
            )
        self._pending_total += float(values.sum())
        self._pending_count += values.size
        if values.size and self._pending_count >= self._settings["group"]:
            self._complete_batch()
        e_max = self.e_max
        uninformative = values <= self._e_min
        unreliable = (values >= e_max) & ~uninformative
        selected = ~(uninformative | unreliable)
        reasons = tuple(
            Reason.SELECTED if good else Reason.UNRELIABLE if high else Reason.UNINFORMATIVE
            for good, high in zip(selected.tolist(), unreliable.tolist(), strict=True)
        )
        return Decision(selected, reasons, e_max)

    def _complete_batch(self) -> None:
        mean = self._pending_total / self._pending_count
        self._total += self._pending_total
        self._count += self._pending_count
        self._pending_total, self._pending_count = 0.0, 0
        previous = self._average
        if self._settings["average"] == "running":
            self._average = self._total / self._count
        elif previous is None:
            self._average = mean
        else:
            self._average = previous + self._settings["momentum"] * (mean - previous)
        if previous is None:
            return
        usable = min(previous, self._average) >= _SMALLEST_AVERAGE
        ratio = self._average / previous if usable else 1.0
        moved = self._settings["decay"] * self._e_max * ratio
        self._e_max = min(max(moved, self._e_min), self._ceiling)

    def state(self) -> dict[str, Any]:
        """Return everything that `load_state` needs to go on, as JSON-able values.

        Returns
        -------
        dict
            Plain numbers and strings; floats survive JSON exactly.
        """
        return {
            "settings": dict(self._settings),
            "e_max": self._e_max,
            "average": self._average,
            "total": self._total,
            "count": self._count,
            "pending_total": self._pending_total,
            "pending_count": self._pending_count,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from where another selector with the same settings stood.

        Parameters
        ----------
        state : mapping
            What `state` returned.

        Raises
        ------
        FormatError
            If `state` is not one of ours, is damaged, or was made with other settings; the selector is then
            unchanged.
        """
        if not isinstance(state, Mapping) or set(state) != set(self.state()):
            raise FormatError(
                f"expected a selector state with the keys {sorted(self.state())}: start a fresh selector"
            )
        if state["settings"] != self._settings:
            raise FormatError(
                f"the selector state was made with the settings {state['settings']}, this selector has "
                f"{self._settings}: start a fresh selector"
            )
        numbers = {key: state[key] for key in ("e_max", "total", "pending_total")}
        counts = {key: state[key] for key in ("count", "pending_count")}
        average = state["average"]
        if average is not None:
            numbers["average"] = average
        if not all(
            type(value) in (int, float) and math.isfinite(value) for value in numbers.values()
        ) or not all(type(value) is int and value >= 0 for value in counts.values()):
            raise FormatError(
                "the selector state holds values that are not finite numbers: start a fresh selector"
            )
        if not self._e_min <= state["e_max"] <= self._ceiling or (average is None) != (state["count"] == 0):
            raise FormatError("the selector state contradicts itself: start a fresh selector")
        self._e_max, self._average = float(state["e_max"]), None if average is None else float(average)
        self._total, self._count = float(state["total"]), state["count"]
        self._pending_total, self._pending_count = float(state["pending_total"]), state["pending_count"]
