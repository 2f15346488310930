"""The rule of the paper: send what lies between two thresholds on the softmax entropy.

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
from typing import Any

import numpy as np
import numpy.typing as npt

from cema.errors import ConfigError, FormatError, LogitsError
from cema.ondevice.selection.config import SelectionConfig
from cema.ondevice.selection.redundancy import RedundancyFilter

__all__ = ["EntropyBand"]

# A mean entropy below this (nats) carries no scale to follow, and would make the ratio of means meaningless.
_SMALLEST_AVERAGE = 1e-12


class EntropyBand:
    r"""Decide which samples of a stream to upload: those with ``E_min < E(x) < E_max``.

    The upper threshold follows the stream, as in the entropy-based sample filtration of [1]_:

    .. math:: E_{max}^t = \lambda \, E_{max}^{t-1} \, \frac{E_{avg}^t}{E_{avg}^{t-1}}

    where `t` counts batches and ``E_avg^t`` is the mean entropy of the stream up to batch `t`. Samples gather
    over calls; a call after which at least `group` are pending completes a batch of all that are pending, and
    the threshold moves *before* that call's samples are decided. The first batch only sets ``E_avg``. At most
    one batch is completed per call; with ``group=1`` every call with samples is a batch.

    Of what lies in the band, ETA's second filter may leave out the redundant.

    Parameters
    ----------
    classes : int
        The number of classes C, at least 2.
    config : SelectionConfig, optional
        The thresholds and how they move; None for the defaults.

    Raises
    ------
    ConfigError
        If there are fewer than two classes.

    Notes
    -----
    While ``E_avg`` is zero (below 1e-12 nats) there is no ratio to take: it counts as 1. The floor bounds what
    decides, not the recursion: ``E_max^t`` itself goes on from ``E_max^{t-1}``.

    References
    ----------
    .. [1] Chen et al., ICLR 2024.

    Examples
    --------
    >>> selector = EntropyBand(10, SelectionConfig(group=1))
    >>> selector.decide(np.array([0.01, 0.5, 2.0])).tolist()
    [False, True, False]
    """

    def __init__(self, classes: int, config: SelectionConfig | None = None) -> None:
        if classes < 2:
            raise ConfigError(f"expected at least 2 classes, got {classes}")
        config = config or SelectionConfig()
        # What states on devices hold and are compared by.
        self._settings: dict[str, Any] = {
            "num_classes": int(classes),
            "e_min": float(config.e_min),
            "e_max": float(config.e_max),
            "decay": float(config.decay),
            "average": str(config.average),
            "momentum": float(config.momentum),
            "group": int(config.group),
            "floor": float(config.floor),
        }
        self._redundancy = RedundancyFilter(config.d_margin) if config.d_margin else None
        if self._redundancy is not None:
            self._settings["d_margin"] = float(config.d_margin)
        if config.on_change != "keep":  # states from before there was this setting go on without it
            self._settings["on_change"] = str(config.on_change)
        self._left_out: dict[str, int] = {}
        self._ceiling = math.log(classes)
        self._e_min = config.e_min * self._ceiling
        self._begin()

    def _begin(self) -> None:
        """Begin as at the first sample of a stream."""
        self._e_max: float = self._settings["e_max"] * self._ceiling
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

    def select(
        self, logits: npt.NDArray[np.float32], entropy: npt.NDArray[np.float64]
    ) -> npt.NDArray[np.bool_]:
        """Decide about one call's samples; see `cema.ondevice.selection.base.Selector`.

        Raises
        ------
        LogitsError
            As `decide`.
        """
        selected = self.decide(entropy)
        inside = int(selected.sum())
        if self._redundancy is not None:
            selected[selected] = self._redundancy.passes(logits[selected])
        below = int(np.count_nonzero(np.asarray(entropy) <= self._e_min))
        self._left_out = {
            "below": below,
            "above": len(selected) - inside - below,
            "redundant": inside - int(selected.sum()),
        }
        return selected

    def left_out(self) -> dict[str, int]:
        """Return how many of the last call's samples were not selected, by reason."""
        return self._left_out

    def decide(self, entropy: npt.ArrayLike) -> npt.NDArray[np.bool_]:
        """Tell which entropies lie in the band, moving the threshold first if they complete a batch.

        Parameters
        ----------
        entropy : array_like of float (N,)
            Softmax entropies in nats; N may be 0.

        Returns
        -------
        ndarray of bool (N,)

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
        inside: npt.NDArray[np.bool_] = (values > self._e_min) & (values < self.e_max)
        return inside

    def changed(self) -> None:
        """Take note that the next call's samples are the first of another domain; begin anew where that is wanted.

        What ETA's second filter has seen stays: it compares predictions, which are of the same classes.
        """
        if "on_change" in self._settings:
            self._begin()

    def describe(self) -> dict[str, float]:
        """Return both thresholds, in nats."""
        return {"e_min": self.e_min, "e_max": self.e_max}

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
        state = {
            "settings": dict(self._settings),
            "e_max": self._e_max,
            "average": self._average,
            "total": self._total,
            "count": self._count,
            "pending_total": self._pending_total,
            "pending_count": self._pending_count,
        }
        if self._redundancy is not None:
            mean = self._redundancy.mean
            state["redundancy"] = None if mean is None else mean.tolist()
        return state

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
        if self._redundancy is not None:
            self._redundancy.mean = _mean_prediction(state["redundancy"], self._settings["num_classes"])
        self._e_max, self._average = float(state["e_max"]), None if average is None else float(average)
        self._total, self._count = float(state["total"]), state["count"]
        self._pending_total, self._pending_count = float(state["pending_total"]), state["pending_count"]


def _mean_prediction(value: Any, classes: int) -> npt.NDArray[np.float64] | None:
    """Check the redundancy filter's part of a state."""
    if value is None:
        return None
    numbers = (
        isinstance(value, list) and len(value) == classes and all(type(v) in (int, float) for v in value)
    )
    if not numbers or not all(math.isfinite(v) for v in value):
        raise FormatError(
            f"the selector state holds no mean prediction of {classes} classes: start a fresh selector"
        )
    return np.asarray(value, np.float64)
