"""The frames of a video file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from cema.edge.images.address import Address
from cema.edge.images.base import Picture, Pictures, Unreadable
from cema.edge.images.decoding import decoded, opened, pixels_of, require_decoder
from cema.errors import ImageError

if TYPE_CHECKING:
    from av.container import InputContainer

__all__ = ["VideoSource"]

# How much shorter than it says a video may be: the last frame's own time, and what its tracks differ by.
_SLACK_SECONDS = 1.0
# Times of frames are rounded to the clock of their file.
_ROUNDING = 1e-4
# Of files that tell neither the times of frames nor how many a second has, as raw H.264 may be.
_USUAL_RATE = 25.0


class VideoSource:
    """Every frame of a video file in order, or one every so many seconds of it.

    Parameters
    ----------
    address : Address
    every : float
        Seconds of the video between two frames, at least; 0: all frames.

    Raises
    ------
    ConfigError
        Nothing installed can decode it.
    ImageError
        The file cannot be read, or holds no video.
    """

    passed_over: Mapping[str, int] = {}
    dropped = None

    def __init__(self, address: Address, *, every: float = 0.0) -> None:
        require_decoder()
        self.name = address.name
        self._address, self._every = address, every
        with opened(address) as container:
            # Matroska does not say how many there are.
            self._frames = 0 if every else container.streams.video[0].frames

    def __len__(self) -> int:
        return self._frames

    def read(self, unreadable: Unreadable) -> Pictures:
        """Read frame after frame; what is damaged is told of, and so is an end that comes too early."""
        index, end = 0, 0.0
        due: float | None = None
        path = self._address.path

        def damaged(error: Exception) -> None:
            nonlocal index
            unreadable(index, path, error)
            index += 1

        try:
            with opened(self._address) as container:
                rate = float(container.streams.video[0].average_rate or 0)
                for frame in decoded(container, damaged):
                    moment = frame.time if frame.time is not None else index / (rate or _USUAL_RATE)
                    end = max(end, moment + (1 / rate if rate else 0.0))
                    if due is None or moment >= due - _ROUNDING:
                        # From the time it was due, so that rounding adds up to nothing; after a gap, from now.
                        due = max((moment if due is None else due) + self._every, moment)
                        yield Picture(index, path, pixels_of(frame), position=moment)
                    index += 1
                _check_end(container, index, end)
        except ImageError as error:
            unreadable(index, path, error)


def _check_end(container: InputContainer, frames: int, end: float) -> None:
    """Refuse an end that comes before the one that the file promised."""
    promised = (container.duration or 0) / 1_000_000
    told = None
    if end < promised - max(_SLACK_SECONDS, promised / 50):
        told = f"expected {promised:.1f} s of video, got {end:.1f} s"
    # Of an AVI file the length is only reckoned from its bytes; in other formats, frames may be left out on purpose.
    elif container.format.name == "avi" and frames < container.streams.video[0].frames:
        told = f"expected {container.streams.video[0].frames} frames, got {frames}"
    if told is not None:
        raise ImageError(f"{container.name}: {told}; the file is cut off: copy it again")
