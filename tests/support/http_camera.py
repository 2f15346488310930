"""A camera that sends JPEG images over HTTP, a hundred a second: ``python http_camera.py PORT AUTHORIZATION``.

Each frame has one shade, which grows by one from frame to frame of a connection. It prints its port.
"""

from __future__ import annotations

import io
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from PIL import Image


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
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
            head = b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(body)
            try:
                self.wfile.write(head + body + b"\r\n")
            except OSError:
                return
            number += 1
            time.sleep(0.01)


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler)
    server.daemon_threads = True
    print(server.server_address[1], flush=True)
    server.serve_forever()
