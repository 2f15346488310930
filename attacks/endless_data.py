"""A cloud, or somebody on the way, sends a device answers without end: fast ones, to fill its memory, and slow ones, to
hold it for ever.

Stopped by limits of bytes and of time: an envelope has 64 KiB at most, a payload what its signed manifest says,
verdicts 1 MiB, what is read of an error 64 KiB, and a whole answer, headers included, takes ten times `timeout_seconds`
at most. REFUSED: memory grows by less than 64 MiB, `predict` goes on, and the device asks again, installs an honest
update and delivers its samples.

    python attacks/endless_data.py
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler

from _edge import Pair, device_and_cloud, make_update
from _parts import Memory, check, eventually, main

Stream = Callable[[], Iterator[bytes]]
CHUNK = b"10000\r\n" + bytes(0x10000) + b"\r\n"
CHUNKED = b"HTTP/1.1 %d Odd\r\nTransfer-Encoding: chunked\r\n\r\n"


def attack(pair: Pair, *, path: str, stream: Stream, pause: float = 0.0) -> None:
    """Answer every request to a path with a stream, for as long as the device reads it."""
    device, cloud = pair.device, pair.cloud
    ended = []

    def instead(request: BaseHTTPRequestHandler) -> bool:
        if path not in request.path:
            return False
        request.close_connection = True
        try:
            for data in stream():
                request.connection.sendall(data)
                time.sleep(pause)
        finally:
            ended.append(path)
        return True

    device.see(8)
    memory = Memory()
    cloud.instead = instead
    cloud.offer(make_update(device.bundle, 2))
    eventually(lambda: len(ended) >= 1, "the device still reads the same answer")
    check(device.see(8, seed=1) > 0, "the device predicts no more")
    memory.stays_below(64)
    check(device.serves(0) or path == "/samples", f"version {device.agent.status().version} serves")
    cloud.instead = lambda _: False
    eventually(lambda: device.serves(2), f"no honest update is installed: {device.agent.status().last_error}")
    check(device.agent.flush(15), f"samples are not delivered: {device.agent.status().last_error}")


def body(status: int, chunk: bytes = CHUNK) -> Iterator[bytes]:
    """Return a body without end."""
    return itertools.chain([CHUNKED % status], itertools.repeat(chunk))


def head(line: bytes) -> Iterator[bytes]:
    """Return headers without end."""
    return itertools.chain([b"HTTP/1.1 200 OK\r\n"], itertools.repeat(line))


def interim() -> Iterator[bytes]:
    """Return answers that each say that another one follows."""
    return itertools.repeat(b"HTTP/1.1 103 Early Hints\r\nLink: </>\r\n\r\n")


UPDATES, ARTIFACTS, SAMPLES = "/updates/latest", "/artifacts/", "/samples"
BYTE = b"1\r\n \r\n"
VARIANTS = {
    "envelope": partial(attack, path=UPDATES, stream=partial(body, 200)),
    "payload": partial(attack, path=ARTIFACTS, stream=partial(body, 200)),
    "verdicts": partial(attack, path=SAMPLES, stream=partial(body, 200)),
    "error-to-a-poll": partial(attack, path=UPDATES, stream=partial(body, 500)),
    "error-to-an-upload": partial(attack, path=SAMPLES, stream=partial(body, 403)),
    "redirect": partial(attack, path=ARTIFACTS, stream=partial(body, 302)),
    "headers": partial(attack, path=UPDATES, stream=partial(head, b"X-A: " + b"a" * 4000 + b"\r\n")),
    "one-header": partial(attack, path=SAMPLES, stream=partial(head, b"a" * 65_536)),
    "interim-answers": partial(attack, path=UPDATES, stream=interim),
    "slow-payload": partial(attack, path=ARTIFACTS, stream=partial(body, 200, BYTE), pause=0.05),
    "slow-error": partial(attack, path=UPDATES, stream=partial(body, 503, BYTE), pause=0.05),
    "slow-headers": partial(attack, path=UPDATES, stream=partial(head, b"X: a\r\n"), pause=0.05),
    "slow-interim-answers": partial(attack, path=SAMPLES, stream=interim, pause=0.05),
}

if __name__ == "__main__":
    sys.exit(main(VARIANTS, partial(device_and_cloud, timeout=0.1)))
