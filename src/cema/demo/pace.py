"""When each edge may predict its next batch: at the camera's pace, and never far ahead of the cloud's worker."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["STALL_SECONDS", "Pace"]

# One step of a large foundation model takes half a minute on two cores; a busy machine needs some times as long.
STALL_SECONDS = 180.0


@dataclass
class _Edge:
    due: float
    asked: int = 0  # batches that it was told to predict
    predicted: int = 0
    in_flight: int = 0  # samples selected that the cloud has not acknowledged


class Pace:
    """Hold the stream while the worker has enough to learn from.

    A sample waits from its selection on the device until the worker is done with it. The next batch goes to the edge
    whose turn it is when, with every image of the batches on their way, no more than `limit` samples would wait.

    Parameters
    ----------
    edges : int
        How many edges share the worker.
    batch : int
        Images per prediction.
    rate : float
        Images per second and edge, at most.
    limit : int
        Most samples that may wait. The worker leaves out what waits beyond its own `max_backlog`.
    least : int
        Samples that may wait in any case: the worker begins a step with so many.
    stall_seconds : float
        After so long without progress of the worker the stream goes on without it, until it makes progress again.
    clock : callable
        Returns seconds.

    Attributes
    ----------
    stalled : bool
        Whether the stream goes on although too many samples wait.
    """

    def __init__(
        self,
        edges: int,
        batch: int,
        rate: float,
        *,
        limit: int,
        least: int,
        stall_seconds: float = STALL_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        now = clock()
        self._edges = [_Edge(due=now) for _ in range(edges)]
        self._batch, self._seconds = batch, batch / rate
        self._limit, self._least = limit, least
        self._stall_seconds, self._clock = stall_seconds, clock
        self._backlog = 0
        self._delivered = 0  # since the cloud was asked
        self._cursor = -1
        self._moved = now
        self.stalled = False

    def predicted(self, edge: int, selected: int) -> None:
        """Book a batch that an edge predicted, and how many of its images it will send."""
        self._edges[edge].predicted += 1
        self._edges[edge].in_flight += selected

    def delivered(self, edge: int, count: int) -> None:
        """Book samples that the cloud acknowledged."""
        self._edges[edge].in_flight -= count  # below 0 where it is told before the prediction is
        self._delivered += count

    def on_device(self, edge: int, count: int) -> None:
        """Correct how many samples an edge still has to send, by its own word: it drops some, and sends none twice."""
        self._edges[edge].in_flight = count

    def finished(self, edge: int) -> None:
        """Forget an edge that has ended."""
        state = self._edges[edge]
        state.due, state.asked, state.in_flight = float("inf"), state.predicted, 0

    def cloud(self, *, backlog: int, cursor: int) -> None:
        """Book what the cloud says: how many samples wait there, and the last one that the worker is done with."""
        self._backlog, self._delivered = backlog, 0
        if cursor != self._cursor:
            self._cursor, self._moved, self.stalled = cursor, self._clock(), False

    def next(self) -> int | None:
        """Return an edge that is to predict a batch now, and count it as told; None while none is."""
        now = self._clock()
        # An edge that is behind with what it was told is slower than the camera: more would only pile up.
        ready = [
            i for i, edge in enumerate(self._edges) if edge.due <= now and edge.asked - edge.predicted < 2
        ]
        if not ready:
            return None
        if self._has_room():
            self._moved, self.stalled = now, False
        elif now - self._moved >= self._stall_seconds:
            self.stalled = True
        else:
            return None
        index = min(ready, key=lambda i: (self._edges[i].due, self._edges[i].asked))
        edge = self._edges[index]
        edge.asked += 1
        edge.due = max(edge.due + self._seconds, now)  # what was waited for is not made up for
        return index

    @property
    def waiting(self) -> int:
        """Samples that the worker has still to learn from, as far as is known."""
        return self._backlog + self._delivered + sum(edge.in_flight for edge in self._edges)

    def _has_room(self) -> bool:
        coming = self._batch * sum(edge.asked - edge.predicted for edge in self._edges)
        return self.waiting + coming + self._batch <= self._limit or self.waiting + coming < self._least
