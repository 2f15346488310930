"""The frames of a camera or a stream: the newest one, whatever breaks."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from cema.edge.images.address import Address, Kind
from cema.edge.images.base import Picture, Pictures, Unreadable
from cema.edge.images.decoding import decoded, opened, pixels_of, require_decoder
from cema.edge.retry import Backoff
from cema.errors import ImageError

if TYPE_CHECKING:
    from av import VideoFrame

__all__ = ["LiveSource"]

_WAIT_SECONDS = 0.2
# A stream that has run for so long was well: the next break is the first one again.
_STEADY_SECONDS = 10.0
_LEAST_WAIT, _LONGEST_WAIT = 0.2, 60.0


class LiveSource:
    """The newest frame of a stream or camera, whenever one is asked for; it has no end.

    A thread reads all frames, so that what waits in the network or the camera never becomes old. A stream that breaks
    is told of and opened again, after waits that grow.

    Parameters
    ----------
    address : Address
    every : float
        Seconds between two frames, at least; 0: all frames.

    Raises
    ------
    ConfigError
        Nothing installed can decode it.
    """

    passed_over: Mapping[str, int] = {}

    def __init__(self, address: Address, *, every: float = 0.0) -> None:
        require_decoder()
        self.name = address.name
        self._feed = _Feed(address, every)

    def __len__(self) -> int:
        return 0

    @property
    def dropped(self) -> int:
        """How many frames gave way to newer ones, or were damaged."""
        return self._feed.dropped

    def read(self, unreadable: Unreadable) -> Pictures:
        """Read the newest frame, again and again; once only, for it ends with its thread."""
        thread = threading.Thread(target=self._feed.run, name="cema-frames", daemon=True)
        thread.start()
        try:
            while True:
                errors, newest = self._feed.take(_WAIT_SECONDS)
                for error in errors:
                    unreadable(None, self.name, error)
                if newest is None:
                    yield None
                else:
                    index, frame = newest
                    yield Picture(index, self.name, pixels_of(frame))
        finally:
            self._feed.stop()


class _Feed:
    """What the thread that reads hands over: one frame at most, and what went wrong."""

    def __init__(self, address: Address, every: float) -> None:
        self._address, self._every = address, every
        self._changed = threading.Condition()
        self._stopped = threading.Event()
        self._newest: tuple[int, VideoFrame] | None = None
        self._errors: list[Exception] = []
        self._seen, self._due = 0, 0.0
        self.dropped = 0

    def take(self, seconds: float) -> tuple[list[Exception], tuple[int, VideoFrame] | None]:
        """Wait for a frame or an error, for so long at most."""
        with self._changed:
            self._changed.wait_for(lambda: self._newest or self._errors, seconds)
            taken = (self._errors, self._newest)
            self._errors, self._newest = [], None
            return taken

    def stop(self) -> None:
        self._stopped.set()

    def run(self) -> None:
        """Read frames until `stop`, and open the stream again whenever it breaks."""
        backoff = Backoff(cap=_LONGEST_WAIT)
        while not self._stopped.is_set():
            began = time.monotonic()
            error = self._read()
            if time.monotonic() - began > _STEADY_SECONDS:
                backoff.reset()
            wait = max(_LEAST_WAIT, backoff.after(error))
            with self._changed:
                self._errors.append(ImageError(f"{error}; it is opened again in {wait:.1f} s"))
                self._changed.notify()
            self._stopped.wait(wait)

    def _read(self) -> Exception:
        """Read until the stream ends; return why it did."""
        name = self._address.name
        try:
            with opened(self._address) as container:
                for frame in decoded(container, lambda _: self._drop()):
                    if self._stopped.is_set():
                        break
                    self._put(frame)
        except ImageError as error:
            return error
        except Exception as error:  # a decoder's fault ends no program; its text may hold the address
            return ImageError(f"{name}: cannot be read: {type(error).__name__}")
        what = "camera" if self._address.kind is Kind.CAMERA else "stream"
        return ImageError(f"{name}: the {what} ended")

    def _put(self, frame: VideoFrame) -> None:
        index, now = self._seen, time.monotonic()
        self._seen += 1
        if now < self._due:
            return
        self._due = now + self._every
        with self._changed:
            self.dropped += self._newest is not None
            self._newest = (index, frame)
            self._changed.notify()

    def _drop(self) -> None:
        self._seen += 1
        with self._changed:
            self.dropped += 1
