"""From an image to the spool, on a thread of its own: predicting waits neither for codec nor disk."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cema.edge.background import BackgroundThread, Clock, Pause
from cema.edge.retry import Backoff
from cema.edge.spool import Spool
from cema.edge.spool_sqlite import DRAWN_LOST
from cema.errors import ImageError
from cema.formats.draw import Draw
from cema.formats.image import CodecConfig, encode_image
from cema.formats.sample import Sample, sample_id

__all__ = ["Capture", "Encoder"]

logger = logging.getLogger(__name__)

_GROUP = 64


class Capture(NamedTuple):
    """An image on its way to the spool: what :class:`cema.formats.sample.Sample` has, and how it was drawn."""

    image: npt.NDArray[np.uint8]
    entropy: float
    label: int
    version: int
    captured_at: float
    draw: Draw | None = None  # None where it was selected and not drawn at random


class Encoder(BackgroundThread):
    """Encode images that are to be sent and put them into the spool, in groups that share one commit.

    Parameters
    ----------
    spool : Spool
    codec : CodecConfig
    max_samples : int
        How many captures may wait.
    max_bytes : int
        How many bytes of pixels may wait (one capture always may).
    save : callable
        Writes what else the agent wants to remember; called every `save_seconds` and at the end.
    save_seconds : float
    clock, backoff, on_change
        See :class:`~cema.edge.background.BackgroundThread`.

    Attributes
    ----------
    codec : CodecConfig
        May be replaced at any time; what waits is encoded with the new one.
    """

    def __init__(
        self,
        spool: Spool,
        codec: CodecConfig,
        *,
        max_samples: int,
        max_bytes: int,
        save: Callable[[], None],
        save_seconds: float,
        clock: Clock,
        backoff: Backoff,
        on_change: Callable[[], None],
    ) -> None:
        super().__init__("recorder", clock=clock, backoff=backoff, on_change=on_change)
        self._spool, self.codec = spool, codec
        self._max_samples, self._max_bytes = max_samples, max_bytes
        self._save, self._save_seconds = save, save_seconds
        self._saved_at = clock.monotonic()
        self._queue: deque[Capture] = deque()
        self._queued_bytes = 0
        self._busy = 0
        self._lock = threading.Lock()  # never held over encoding or a write

    @property
    def waiting(self) -> int:
        """Captures that are not in the spool yet."""
        with self._lock:
            return len(self._queue) + self._busy

    def offer(self, captures: Sequence[Capture]) -> int:
        """Take captures, and drop those (``queue_full``) that are too many. Never blocks.

        Images are copied: the caller may reuse their buffers.

        Returns
        -------
        int
            How many were taken.
        """
        lost = []
        for capture in captures:
            # Asked twice: a copy made only to be dropped would be a waste.
            if not self._has_room(capture) or not self._append(
                Capture(np.array(capture.image), *capture[1:])
            ):
                lost.append(capture)
        self._lose(lost, "queue_full")
        if len(lost) < len(captures):
            self.notify()
        return len(captures) - len(lost)

    def step(self) -> Pause:
        """Record one group; save when it is time."""
        before = self.last_error
        self._record_next()
        now = self.clock.monotonic()
        if now - self._saved_at >= self._save_seconds:
            self._saved_at = now
            self._save()
            if self.last_error == before:  # of an earlier step: the disk takes everything again
                self.succeeded()
        if self._queue:
            return Pause(0.0)
        return Pause(self._save_seconds - (now - self._saved_at))

    def finish(self) -> None:
        """Record everything that still waits, and save; a disk that refuses is not asked group by group."""
        try:
            while self._queue:
                self._record_next()
        except Exception:
            with self._lock:
                lost = list(self._queue)
                self._queue.clear()
                self._queued_bytes = 0
            self._lose(lost, "disk_error")
            raise
        finally:
            self._save()

    def _has_room(self, capture: Capture) -> bool:
        size = self._queued_bytes + capture.image.nbytes
        return len(self._queue) < self._max_samples and (not self._queue or size <= self._max_bytes)

    def _append(self, capture: Capture) -> bool:
        with self._lock:
            if not self._has_room(capture):
                return False
            self._queue.append(capture)
            self._queued_bytes += capture.image.nbytes
            return True

    def _lose(self, captures: Sequence[Capture], reason: str) -> None:
        self._spool.count(f"dropped.{reason}", len(captures))
        self._spool.count(DRAWN_LOST, sum(capture.draw is not None for capture in captures))

    def _take(self) -> list[Capture]:
        with self._lock:
            group = [self._queue.popleft() for _ in range(min(_GROUP, len(self._queue)))]
            self._queued_bytes -= sum(capture.image.nbytes for capture in group)
            self._busy = len(group)
        return group

    def _record_next(self) -> None:
        group = self._take()
        try:
            if group:
                self._record(group)
        finally:
            with self._lock:
                self._busy = 0

    def _record(self, group: list[Capture]) -> None:
        samples, draws, problem = [], [], None
        for capture in group:
            try:
                samples.append(self._encode(capture))
                draws.append(capture.draw)
            except Exception as error:  # a codec's bug costs its own image, never the others of the group
                problem = f"recorder: {error or type(error).__name__}"
                expected = isinstance(error, ImageError)
                logger.warning("%s; the sample is dropped", problem, exc_info=None if expected else error)
                self._lose([capture], "encode_error")
        self._spool.put_many(samples, draws)
        self.succeeded()
        self.last_error = problem

    def _encode(self, capture: Capture) -> Sample:
        encoded = encode_image(capture.image, self.codec)
        return Sample(
            id=sample_id(encoded),
            image=encoded,
            entropy=capture.entropy,
            label=capture.label,
            version=capture.version,
            captured_at=capture.captured_at,
        )
