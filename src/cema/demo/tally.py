"""What happened on each edge, sample by sample, and the table made of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["EdgeTally", "SegmentResult", "rolling_mean", "summarise"]


@dataclass
class EdgeTally:
    """The record of one edge.

    Parameters
    ----------
    labels : ndarray of int64, (N,)
        The true labels; they never leave the process that scores.
    bounds : sequence of int, (S + 1,)
        Where each segment begins in the stream, and where the last one ends.
    """

    labels: NDArray[np.int64]
    bounds: Sequence[int]
    seen: int = 0
    frozen: NDArray[np.bool_] = field(init=False)
    adapted: NDArray[np.bool_] = field(init=False)
    uploaded: NDArray[np.int64] = field(init=False)
    bytes_up: NDArray[np.int64] = field(init=False)
    bytes_down: NDArray[np.int64] = field(init=False)
    guarded: NDArray[np.bool_] = field(init=False)
    swaps: list[tuple[int, int]] = field(default_factory=list)
    status: dict[str, Any] = field(default_factory=dict)
    # By moment of capture: which images of the batch are selected and not booked as sent.
    _open: dict[float, list[int]] = field(default_factory=dict)
    _last_sent: dict[float, int] = field(default_factory=dict)
    _early: list[tuple[float, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        count = len(self.labels)
        self.frozen = np.zeros(count, bool)
        self.adapted = np.zeros(count, bool)
        self.uploaded = np.zeros(count, np.int64)
        self.bytes_up = np.zeros(count, np.int64)
        self.bytes_down = np.zeros(count, np.int64)
        self.guarded = np.zeros(count, bool)

    @property
    def version(self) -> int:
        """The version that the edge runs."""
        return self.swaps[-1][1] if self.swaps else 0

    @property
    def segment(self) -> int:
        """The index of the segment that the edge is in."""
        return int(np.searchsorted(self.bounds, min(self.seen, self.bounds[-1] - 1), side="right")) - 1

    def predicted(
        self,
        index: int,
        captured_at: float,
        adapted: Sequence[int],
        frozen: NDArray[np.int64],
        guarded: bool = False,
        *,
        selected: Sequence[bool] | None = None,
    ) -> None:
        """Score a batch of predictions of both models that begins at sample `index`; None selects all of it."""
        chosen = [True] * len(adapted) if selected is None else selected
        self._open[captured_at] = [index + i for i, sent in enumerate(chosen) if sent]
        # A sample may be acknowledged before the line about its prediction is written: two threads write them.
        early, self._early = self._early, []
        self.sent([moment for moment, _ in early], [size for _, size in early])
        rows = slice(index, index + len(adapted))
        self.adapted[rows] = np.asarray(adapted) == self.labels[rows]
        self.frozen[rows] = frozen == self.labels[rows]
        self.guarded[rows] = guarded
        self.seen = max(self.seen, rows.stop)

    def sent(self, captured_at: Sequence[float], size: Sequence[int]) -> None:
        """Book samples that the cloud acknowledged, and their encoded bytes, among their batch's selected images.

        A batch is sent in its order, and each image counts once: what is acknowledged again adds its bytes alone.
        """
        for moment, count in zip(captured_at, size, strict=True):
            open_ = self._open.get(moment)
            if open_ is None:
                self._early.append((moment, count))
            elif open_:
                place = open_.pop(0)
                self.uploaded[place] += 1
                self.bytes_up[place] += count
                self._last_sent[moment] = place
            elif moment in self._last_sent:
                self.bytes_up[self._last_sent[moment]] += count

    def swapped(self, version: int, size: int) -> None:
        """Book an update that the edge took, where the stream stood."""
        self.swaps.append((self.seen, version))
        self._downloaded(size)

    def finished(self, status: dict[str, Any]) -> None:
        """Keep the edge's last status, and book what it fetched after its last swap."""
        self.status = status
        self._downloaded(int(status["bytes_down"]) - int(self.bytes_down.sum()))

    def _downloaded(self, size: int) -> None:
        self.bytes_down[min(self.seen, len(self.labels) - 1)] += size


@dataclass(frozen=True)
class SegmentResult:
    """One row of the table: accuracies in percent, counts summed over edges."""

    name: str
    samples: int
    frozen_accuracy: float
    adapted_accuracy: float
    uploaded: int
    bytes_up: int
    bytes_down: int
    guarded: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Return the row for JSON."""
        return asdict(self)


def summarise(names: Sequence[str], tallies: Sequence[EdgeTally]) -> list[SegmentResult]:
    """Sum what each edge recorded, segment by segment, over the samples that were predicted."""
    rows = []
    for i, name in enumerate(names):
        parts = [
            (t, slice(t.bounds[i], min(t.bounds[i + 1], t.seen))) for t in tallies if t.seen > t.bounds[i]
        ]
        count = sum(s.stop - s.start for _, s in parts)
        if not count:
            continue
        rows.append(
            SegmentResult(
                name=name,
                samples=count,
                frozen_accuracy=100.0 * sum(int(t.frozen[s].sum()) for t, s in parts) / count,
                adapted_accuracy=100.0 * sum(int(t.adapted[s].sum()) for t, s in parts) / count,
                uploaded=sum(int(t.uploaded[s].sum()) for t, s in parts),
                bytes_up=sum(int(t.bytes_up[s].sum()) for t, s in parts),
                bytes_down=sum(int(t.bytes_down[s].sum()) for t, s in parts),
                guarded=sum(int(t.guarded[s].sum()) for t, s in parts),
            )
        )
    return rows


def rolling_mean(correct: NDArray[np.bool_], window: int) -> NDArray[np.float64]:
    """Return the mean of the last `window` values at every position, in percent; shorter windows at the start."""
    total = np.concatenate([[0], np.cumsum(correct, dtype=np.int64)])
    end = np.arange(1, len(correct) + 1)
    start = np.maximum(end - window, 0)
    return np.asarray(100.0 * (total[end] - total[start]) / (end - start))
