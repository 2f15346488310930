"""Videos that tests make, and cameras in the network."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt

__all__ = ["Camera", "shades", "write_video"]


class Camera:
    """A camera in the network, as a process that can be killed and comes back.

    Parameters
    ----------
    scheme : str
        ``http`` or ``rtsp``: what it speaks.
    authorization : str
        The header that it asks for; empty: none.
    """

    def __init__(self, scheme: str, authorization: str = "") -> None:
        self._scheme, self._authorization = scheme, authorization
        self.port = 0
        self.start()

    @property
    def url(self) -> str:
        """Its address, without a password."""
        return f"{self._scheme}://127.0.0.1:{self.port}/live"

    def start(self) -> None:
        """Start it, on the port that it had."""
        script = Path(__file__).with_name(f"{self._scheme}_camera.py")
        arguments = [sys.executable, str(script), str(self.port), self._authorization]
        self._process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())

    def kill(self) -> None:
        """Kill it in the middle of a frame."""
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


def shades(count: int, height: int = 48, width: int = 64) -> list[npt.NDArray[np.uint8]]:
    """Return images of one shade each: 8 times their number."""
    return [np.full((height, width, 3), 8 * i, np.uint8) for i in range(count)]


def write_video(
    path: Path,
    images: Iterable[npt.NDArray[np.uint8]],
    *,
    rate: int = 10,
    codec: str = "mpeg4",
    **options: str,
) -> Path:
    """Write a video of RGB images of one size; the format is that of the file's ending."""
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.bit_rate = 8_000_000  # so that a shade is known again
        frames = list(images)
        stream.height, stream.width = frames[0].shape[:2]
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path
