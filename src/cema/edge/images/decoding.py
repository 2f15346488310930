"""Decoding of video, with PyAV; nothing else in the package imports it.

PyAV (the package ``av``) was chosen over OpenCV. Its wheels bring FFmpeg along, so that no system needs one, and no
code that draws windows. It decodes without the interpreter's lock, so that a thread can read a camera while the model
predicts. Its errors say why a stream broke, and it takes time limits for opening and reading, where OpenCV returns
"no frame" and may wait for ever. The positions of frames, how a phone was held, and cameras come with it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cema.edge.images.address import Address, Kind
from cema.errors import ConfigError, ImageError

if TYPE_CHECKING:
    from av import VideoFrame
    from av.container import InputContainer

__all__ = ["decoded", "opened", "pixels_of", "require_decoder"]

# How long a stream may take to open, and then, how long it may send nothing.
SILENT_SECONDS = 10.0
# A stream whose every packet is damaged is one that has to be opened again.
_MOST_DAMAGED = 100


def require_decoder() -> None:
    """Refuse a source that nothing installed can decode.

    Raises
    ------
    ConfigError
        PyAV is missing or cannot be loaded.
    """
    try:
        import av  # noqa: F401, PLC0415 - only a device with such a source needs it
    except ImportError as error:
        raise ConfigError(
            f"videos, streams and cameras need the package av ({error}); install it with: pip install 'cema[camera]'"
        ) from error


@contextmanager
def opened(address: Address) -> Iterator[InputContainer]:
    """Open a video file, a stream or a camera for the block.

    Raises
    ------
    ImageError
        It cannot be opened, holds no video, or breaks in the block. No message has more of an address than its name.
    """
    import av  # noqa: PLC0415

    live = address.kind is not Kind.VIDEO
    place, form = _device(address.place) if address.kind is Kind.CAMERA else (address.place, None)
    # RTSP over UDP loses packets at the first busy moment, and does not pass most routers.
    options = {"rtsp_transport": "tcp"} if place.lower().startswith("rtsp") else {}
    try:
        with av.open(
            place, format=form, options=options, timeout=SILENT_SECONDS if live else None
        ) as container:
            if not container.streams.video:
                raise ImageError(
                    f"{address.name}: expected a video, found none in it; check that it is whole"
                )
            yield container
    except av.FFmpegError as error:
        # Its own text has the whole address, password and all.
        reason = error.strerror or type(error).__name__
        if isinstance(error, av.error.ExitError):  # how FFmpeg calls it that its time was over
            reason = f"it sent nothing for {SILENT_SECONDS:g} s"
        what = "cannot be read as a video" if not live else "cannot be read"
        hint = "; check that the file is whole and a video" if not live else ""
        raise ImageError(f"{address.name}: {what}: {reason}{hint}") from None


def decoded(container: InputContainer, damaged: Callable[[Exception], None]) -> Iterator[VideoFrame]:
    """Decode frame after frame of the first video; a packet that cannot be decoded is told of and passed over.

    Parameters
    ----------
    container : av.container.InputContainer
    damaged : callable
        Called with the reason for each such packet.
    """
    import av  # noqa: PLC0415

    in_a_row = 0
    for packet in container.demux(container.streams.video[0]):
        try:
            frames = packet.decode()
        except av.error.InvalidDataError as error:
            in_a_row += 1
            if in_a_row > _MOST_DAMAGED:
                raise
            damaged(ImageError(f"a frame cannot be decoded: {error.strerror}; it is passed over"))
            continue
        for frame in frames:
            in_a_row = 0
            yield frame


def pixels_of(frame: VideoFrame) -> npt.NDArray[np.uint8]:
    """Return a frame as pixels, upright as the camera was held.

    Returns
    -------
    ndarray of uint8, shape (H, W, 1 or 3)
        Grey, or RGB.
    """
    grey = frame.format.name.startswith("gray")
    pixels: npt.NDArray[Any] = frame.to_ndarray(format="gray" if grey else "rgb24")
    upright = np.rot90(pixels, round(frame.rotation / 90) % 4)
    return np.ascontiguousarray(upright[:, :, None] if grey else upright, np.uint8)


def _device(place: str) -> tuple[str, str]:
    """Return how FFmpeg calls a camera on this system, and the format that reads cameras."""
    if sys.platform == "darwin":
        return place, "avfoundation"
    return (f"/dev/video{place}" if place.isdigit() else place), "v4l2"
