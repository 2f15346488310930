"""Videos that tests make, and a camera that serves them over HTTP, as a process that can be killed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt

__all__ = ["HttpCamera", "shades", "write_video"]

# Whatever answers is a frame of one shade, which grows by one from frame to frame of a connection.
CAMERA = """
import io, sys, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from PIL import Image

class Handler(BaseHTTPRequestHandler):
    def log_message(self, *arguments):
        pass

    def do_GET(self):
        if sys.argv[2] and self.headers["Authorization"] != sys.argv[2]:
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="camera"')
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        number = 0
        while True:
            file = io.BytesIO()
            Image.new("RGB", (64, 48), (number % 250,) * 3).save(file, "JPEG")
            body = file.getvalue()
            head = b"--frame\\r\\nContent-Type: image/jpeg\\r\\nContent-Length: %d\\r\\n\\r\\n" % len(body)
            try:
                self.wfile.write(head + body + b"\\r\\n")
            except OSError:
                return
            number += 1
            time.sleep(0.01)

server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler)
server.daemon_threads = True
print(server.server_address[1], flush=True)
server.serve_forever()
"""


class HttpCamera:
    """A camera that sends JPEG images over HTTP (MJPEG), a hundred a second.

    Parameters
    ----------
    authorization : str
        The header that it asks for; empty: none.
    """

    def __init__(self, authorization: str = "") -> None:
        self._authorization = authorization
        self.port = 0
        self.start()

    def start(self) -> None:
        """Start it, on the port that it had."""
        arguments = [sys.executable, "-c", CAMERA, str(self.port), self._authorization]
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
