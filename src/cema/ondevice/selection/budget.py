"""A rule with an exact budget: send a fixed share of the stream, the most useful samples first.

The thresholds of the paper decide what is useful, and how much is sent follows from the stream. Here it is the other
way round: how much is sent is given, and the threshold follows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from cema.errors import ConfigError, FormatError, LogitsError
from cema.ondevice.selection.budget_options import BudgetOptions, Order
from cema.ondevice.selection.usefulness import prototype_scores, quota_scores, uniform_numbers

__all__ = ["Budget"]

Float64 = npt.NDArray[np.float64]

# Tokens are whole numbers of these: nothing is lost or gained by rounding, however long the stream.
_TOKEN = 10**9
# The parts of the order "mixed": thousandths of the share.
_MIXED: tuple[tuple[Order, int], ...] = (("quota", 800), ("prototype", 150), ("random", 50))
# Scores are compared with those of so many groups of samples.
_REMEMBERED = 4
_SMALLEST_NORM = 1e-12


@dataclass
class _Lane:
    """A part of the budget with an order of its own, in tokens of which `_TOKEN` send one sample."""

    order: Order
    earned: int  # for each sample
    earned_in_burst: int
    saved: int = 0


class Budget:
    r"""Send at most a share of the samples predicted: those that are most useful by the chosen order.

    A token bucket bounds what is sent: each sample predicted earns `share` tokens, a sample sent costs one, and no more
    than one token and what `group` samples earn is saved up. So no stream, however it is split into calls, sends more
    than ``share * N`` of its first N samples, apart from what a burst adds:

    .. math:: sent(N) \le s N + (b s - s) \min(N, N_b)

    with the share s, and ``min(1, b s)`` in place of ``b s`` where that is more than 1. The first ``N_b = burst_for``
    samples may have b = `burst` times the share, and so may the first after a change of domain (`changed`). A burst
    begins at most once in ``b N_b`` samples, so that even if the domain never stops changing, no more than
    ``2 - 1/b`` times the share and one burst are sent.

    Which samples: each has a score, and those whose score is among the highest ``r`` of the latest ``4 * group``
    samples and of the call are candidates. Of a call's candidates the highest are sent, as far as the tokens go.
    ``r`` is near the share. It rises with the tokens T in the bucket, so that these are used, also where every call has
    one sample:

    .. math:: r = s + \frac{2}{G} \left(T - \frac{s (1 - s) G}{2}\right), \quad G = \max(group, N_{call})

    The order ``mixed`` has three such buckets. Each chooses among what those before it left.

    Parameters
    ----------
    classes : int
        The number of classes C, at least 2.
    options : BudgetOptions, optional
        None for the defaults.

    Raises
    ------
    ConfigError
        If there are fewer than two classes.

    Examples
    --------
    >>> selector = Budget(2, BudgetOptions(share=0.25, order="entropy"))
    >>> logits = np.array([[9, 0], [1, 0], [3, 0], [8, 0]], np.float32)
    >>> selector.select(logits, np.array([0.001, 0.58, 0.19, 0.003])).tolist()
    [False, True, False, False]
    """

    def __init__(self, classes: int, options: BudgetOptions | None = None) -> None:
        if classes < 2:
            raise ConfigError(f"expected at least 2 classes, got {classes}")
        self._options = options or BudgetOptions()
        self._classes = int(classes)
        # What states on devices hold and are compared by.
        self._settings: dict[str, Any] = {"num_classes": self._classes} | msgspec.to_builtins(self._options)
        self._left_out = 0
        self._lanes = _lanes(self._options)
        self._seen, self._sent = 0, 0
        # Samples until the burst ends, and until another may begin.
        self._burst_left = self._options.burst_for
        self._no_burst_for = self._pause()
        # Of the latest samples: entropy, predicted class, and likeness to the mean prediction; and that prediction.
        self._recent: Float64 = np.empty((3, 0))
        self._mean: Float64 | None = None

    def changed(self) -> None:
        """Take note that the domain has changed: compare with new samples only, and begin another burst if one is due.

        See `cema.ondevice.selection.base.NotesChanges`.
        """
        self._recent, self._mean = np.empty((3, 0)), None
        if not self._no_burst_for:
            self._burst_left = self._options.burst_for
            self._no_burst_for = self._pause()

    def select(
        self, logits: npt.NDArray[np.float32], entropy: npt.NDArray[np.float64]
    ) -> npt.NDArray[np.bool_]:
        """Decide about one call's samples; see `cema.ondevice.selection.base.Selector`.

        Raises
        ------
        LogitsError
            If the shapes do not fit, or there is NaN or infinity; the selector is then unchanged.
        """
        z, values = self._checked(logits, entropy)
        count = len(values)
        selected = np.zeros(count, np.bool_)
        self._left_out = 0
        if not count:
            return selected
        self._take_in(z, values)
        burst = min(count, self._burst_left)
        numbers = uniform_numbers(self._options.seed, self._seen, count)
        for lane in self._lanes:
            lane.saved += burst * lane.earned_in_burst + (count - burst) * lane.earned
            self._spend(lane, selected, numbers)
        self._burst_left -= burst
        self._no_burst_for -= min(count, self._no_burst_for)
        for lane in self._lanes:
            lane.saved = min(lane.saved, _TOKEN + self._options.group * self._rate(lane))
        self._seen += count
        self._sent += int(selected.sum())
        self._left_out = count - int(selected.sum())
        self._recent = self._recent[:, -_REMEMBERED * self._options.group :]
        return selected

    def left_out(self) -> dict[str, int]:
        """Return how many of the last call's samples were not selected, by reason: others were more useful."""
        return {"budget": self._left_out}

    def describe(self) -> dict[str, float]:
        """Return the tokens in the bucket, how long the burst still lasts, and the share that was sent so far."""
        return {
            "tokens": sum(lane.saved for lane in self._lanes) / _TOKEN,
            "burst_left": float(self._burst_left if self._options.burst > 1 else 0),
            "sent_share": self._sent / self._seen if self._seen else 0.0,
        }

    def _checked(self, logits: npt.ArrayLike, entropy: npt.ArrayLike) -> tuple[Float64, Float64]:
        z, values = np.asarray(logits, np.float64), np.asarray(entropy, np.float64)
        if values.ndim != 1 or z.shape != (len(values), self._classes):
            raise LogitsError(
                f"expected logits of shape (N, {self._classes}) and entropies of shape (N,), got shapes {z.shape} "
                f"and {values.shape}"
            )
        if not (np.isfinite(values).all() and np.isfinite(z).all()):
            raise LogitsError(
                "expected finite logits and entropies, got NaN or infinity: check the model's weights and input"
            )
        return z, values

    def _take_in(self, logits: Float64, entropy: Float64) -> None:
        """Remember what the scores are made of."""
        likeness = np.zeros(len(entropy))
        if any(lane.order == "prototype" for lane in self._lanes):
            likeness = self._likeness(logits)
        rows = np.stack([entropy, logits.argmax(axis=1).astype(np.float64), likeness])
        self._recent = np.concatenate([self._recent, rows], axis=1)

    def _likeness(self, logits: Float64) -> Float64:
        """Move the mean prediction, and return each prediction's cosine with it."""
        mass = np.exp(logits - logits.max(axis=1, keepdims=True))
        p: Float64 = mass / mass.sum(axis=1, keepdims=True)
        mean: Float64 = p.mean(axis=0)
        if self._mean is not None:
            kept = (1.0 - 1.0 / (_REMEMBERED * self._options.group)) ** len(p)
            mean = kept * self._mean + (1.0 - kept) * mean
        self._mean = mean
        norms = np.linalg.norm(p, axis=1) * np.linalg.norm(mean)
        cosine: Float64 = np.clip(p @ mean / np.maximum(norms, _SMALLEST_NORM), 0.0, 1.0)
        return cosine

    def _rate(self, lane: _Lane) -> int:
        return lane.earned_in_burst if self._burst_left else lane.earned

    def _spend(self, lane: _Lane, selected: npt.NDArray[np.bool_], numbers: Float64) -> None:
        """Mark what a part of the budget sends of a call, and take its price."""
        tokens = lane.saved // _TOKEN
        if not tokens:
            return
        count = len(selected)
        share = self._rate(lane) / _TOKEN
        group = max(self._options.group, count)
        above = share + 2.0 / group * (lane.saved / _TOKEN - 0.5 * share * (1.0 - share) * group)
        if lane.order == "random":
            scores, threshold = numbers, 1.0 - above
        else:
            every = self._scores(lane.order)
            scores = every[-count:]
            most = min(max(math.ceil(above * len(every)), 1), len(every))
            threshold = float(np.partition(every, len(every) - most)[len(every) - most])
        best = np.argsort(-scores, kind="stable")
        best = best[(scores[best] >= threshold) & ~selected[best]][:tokens]
        selected[best] = True
        lane.saved -= len(best) * _TOKEN

    def _scores(self, order: Order) -> Float64:
        """Return the scores of the latest samples, this call's last."""
        entropy: Float64 = self._recent[0]
        labels, likeness = self._recent[1].astype(np.int64), self._recent[2]
        if order == "quota":
            return quota_scores(entropy, labels, math.log(self._classes))
        if order == "prototype":
            return prototype_scores(entropy, labels, likeness)
        return entropy

    def _pause(self) -> int:
        return math.ceil(self._options.burst * self._options.burst_for)

    def state(self) -> dict[str, Any]:
        """Return everything that `load_state` needs to go on, as JSON-able values.

        Returns
        -------
        dict
            Plain numbers, strings and lists; floats survive JSON exactly.
        """
        return {
            "settings": dict(self._settings),
            "seen": self._seen,
            "sent": self._sent,
            "burst_left": self._burst_left,
            "no_burst_for": self._no_burst_for,
            "tokens": [lane.saved for lane in self._lanes],
            "recent": self._recent.tolist(),
            "mean": None if self._mean is None else self._mean.tolist(),
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
        counts = {
            key: _counts([state[key]], key, most)[0]
            for key, most in (
                ("seen", None),
                ("sent", state["seen"]),
                ("burst_left", self._options.burst_for),
                ("no_burst_for", self._pause()),
            )
        }
        most = _TOKEN + self._options.group * _TOKEN
        tokens = _counts(state["tokens"], "tokens", most, len(self._lanes))
        recent = self._checked_recent(state["recent"])
        mean = None if state["mean"] is None else _numbers(state["mean"], "mean", self._classes)
        self._seen, self._sent = counts["seen"], counts["sent"]
        self._burst_left, self._no_burst_for = counts["burst_left"], counts["no_burst_for"]
        for lane, saved in zip(self._lanes, tokens, strict=True):
            lane.saved = saved
        self._recent, self._mean = recent, mean

    def _checked_recent(self, value: Any) -> Float64:
        if not isinstance(value, list) or len(value) != 3 or not isinstance(value[0], list):
            raise _damaged("recent")
        length = len(value[0])
        rows = np.stack([_numbers(row, "recent", length) for row in value])
        labels = rows[1]
        fits = (labels == np.floor(labels)) & (labels >= 0) & (labels < self._classes)
        if length > _REMEMBERED * self._options.group or not fits.all():
            raise _damaged("recent")
        return rows


def _lanes(options: BudgetOptions) -> list[_Lane]:
    """Split the budget; the parts add up to it exactly."""
    earned, burst = (int(min(1.0, times * options.share) * _TOKEN + 1e-3) for times in (1.0, options.burst))
    if options.order != "mixed":
        return [_Lane(options.order, earned, burst)]
    lanes = [_Lane(order, earned * weight // 1000, burst * weight // 1000) for order, weight in _MIXED[1:]]
    first = _Lane(
        _MIXED[0][0],
        earned - sum(lane.earned for lane in lanes),
        burst - sum(lane.earned_in_burst for lane in lanes),
    )
    return [first, *lanes]


def _damaged(part: str) -> FormatError:
    return FormatError(f"the selector state is damaged at {part!r}: start a fresh selector")


def _counts(values: Any, part: str, most: int | None = None, length: int = 1) -> list[int]:
    """Check whole numbers of a state."""
    whole = isinstance(values, list) and len(values) == length and all(type(v) is int for v in values)
    if not whole or not all(v >= 0 and (most is None or v <= most) for v in values):
        raise _damaged(part)
    return list(values)


def _numbers(values: Any, part: str, length: int) -> Float64:
    """Check numbers of a state."""
    fits = isinstance(values, list) and len(values) == length and all(type(v) in (int, float) for v in values)
    if not fits or not all(math.isfinite(v) for v in values):
        raise _damaged(part)
    return np.asarray(values, np.float64)
