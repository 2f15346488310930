"""A camera that speaks RTSP (RFC 2326), as cameras in networks do: ``python rtsp_camera.py PORT AUTHORIZATION``.

One MPEG-4 video of a hundred frames a second, its RTP packets within the connection (section 10.12). Each frame has one
shade, which grows by one from frame to frame of a connection. It prints its port.
"""

from __future__ import annotations

import socket
import sys
import threading
import time
from contextlib import suppress
from typing import BinaryIO

import av
import numpy as np

SDP = """v=0
o=- 0 0 IN IP4 127.0.0.1
s=camera
c=IN IP4 127.0.0.1
t=0 0
m=video 0 RTP/AVP 96
a=rtpmap:96 MP4V-ES/90000
a=fmtp:96 profile-level-id=1
a=control:track
""".replace("\n", "\r\n")
HEADERS = {
    "OPTIONS": "Public: DESCRIBE, SETUP, PLAY, TEARDOWN\r\n",
    "DESCRIBE": "Content-Type: application/sdp\r\n",
    "SETUP": "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\nSession: 1\r\n",
    "PLAY": "Session: 1\r\n",
}


def send_video(port: int, stop: threading.Event) -> None:
    """Send the RTP packets of a video to a port of this machine, over UDP."""
    with av.open(f"rtp://127.0.0.1:{port}", "w", format="rtp") as container:
        stream = container.add_stream("mpeg4", rate=100)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = 64, 48, "yuv420p", 5
        number = 0
        while not stop.is_set():
            pixels = np.full((48, 64, 3), number % 250, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            number += 1
            time.sleep(0.01)


def requests(file: BinaryIO) -> list[tuple[str, dict[str, str]]]:
    """Read one request: its method and its headers; nothing where the connection has ended."""
    line = file.readline()
    if not line:
        return []
    headers = {}
    while header := file.readline().strip():
        name, _, value = header.decode().partition(":")
        headers[name.lower()] = value.strip()
    return [(line.split()[0].decode(), headers)]


def serve(connection: socket.socket, authorization: str) -> None:
    """Answer the requests of one client, then send it the video."""
    stop = threading.Event()
    with (
        suppress(OSError),
        connection,
        connection.makefile("rb") as file,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as rtp,
    ):
        rtp.bind(("127.0.0.1", 0))
        while found := requests(file):
            ((method, headers),) = found
            status, extra = "200 OK", HEADERS.get(method, "")
            body = SDP if method == "DESCRIBE" else ""
            if authorization and method != "OPTIONS" and headers.get("authorization") != authorization:
                status, extra, body = "401 Unauthorized", 'WWW-Authenticate: Basic realm="camera"\r\n', ""
            head = (
                f"RTSP/1.0 {status}\r\nCSeq: {headers['cseq']}\r\n{extra}Content-Length: {len(body)}\r\n\r\n"
            )
            connection.sendall((head + body).encode())
            if method == "PLAY" and status == "200 OK":
                threading.Thread(target=send_video, args=(rtp.getsockname()[1], stop), daemon=True).start()
                try:
                    while True:
                        packet = rtp.recv(65_536)
                        connection.sendall(b"$\0" + len(packet).to_bytes(2, "big") + packet)
                finally:
                    stop.set()


def main(port: int, authorization: str) -> None:
    """Take clients for ever."""
    with socket.create_server(("127.0.0.1", port)) as server:
        print(server.getsockname()[1], flush=True)
        while True:
            client = server.accept()[0]
            threading.Thread(target=serve, args=(client, authorization), daemon=True).start()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
