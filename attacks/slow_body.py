"""Uploads that hardly come, or never end: to hold the cloud's places for uploads, and its memory.

Stopped by a least rate (408), by the longest time of a request, by a limit of places for each device (503), and by the
limit of bytes (413). The times are shortened here, so that the attack is over soon. REFUSED: each slow upload is
answered or closed, and an honest device gets through meanwhile and afterwards.

    python attacks/slow_body.py
"""

from __future__ import annotations

import select
import socket
import sys
from contextlib import ExitStack, suppress
from functools import partial

from _cloud import Service, service
from _parts import Memory, check, eventually, main
from cema.cloud.http import body
from cema.cloud.http.connections import Connections

body.FIRST_SECONDS = 0.6  # 20 in the product
CHUNKED = b"Transfer-Encoding: chunked"


def attack(
    cloud: Service, *, head: bytes, again: bytes, uploads: int = 4, answers: tuple[bytes, ...]
) -> None:
    """Open uploads, send each a few bytes now and then, and wait for their answers."""
    memory = Memory()
    with ExitStack() as stack:
        open_ = {
            stack.enter_context(cloud.connect(head.replace(b"TOKEN", cloud.hostile.encode())))
            for _ in range(uploads)
        }
        cloud.takes_honest_samples()
        told: set[bytes] = set()

        def ended() -> bool:
            for connection in select.select(list(open_), [], [], 0.05)[0]:
                with suppress(ConnectionError):
                    told.add(connection.recv(4096)[9:12])
                open_.discard(connection)
            for connection in open_:
                _send(connection, again)
            return not open_

        eventually(ended, "the cloud still reads")
        check(told <= {*answers, b""}, f"answered {told}, not {answers}")
        cloud.takes_honest_samples()
    memory.stays_below(64)


def _send(connection: socket.socket, data: bytes) -> None:
    with suppress(OSError):
        connection.sendall(data)


def head(length: bytes) -> bytes:
    """Return the head of an upload with a length, or with chunks."""
    lines = [
        b"POST /v1/cohorts/north/samples HTTP/1.1", b"Host: cloud", b"Authorization: Bearer TOKEN",
        b"Content-Type: application/vnd.cema.samples+msgpack", length,
    ]  # fmt: skip
    return b"\r\n".join([*lines, b"", b""])


LONG = head(b"Content-Length: 1000000")
VARIANTS = {
    "nothing-comes": partial(attack, head=LONG, again=b"", answers=(b"408",)),
    "a-byte-now-and-then": partial(attack, head=LONG, again=b"a", answers=(b"408",)),
    "a-chunk-now-and-then": partial(attack, head=head(CHUNKED), again=b"1\r\na\r\n", answers=(b"408",)),
    "thirty-of-one-device": partial(attack, head=LONG, again=b"a", uploads=30, answers=(b"408", b"503")),
    "chunks-without-end": partial(
        attack,
        head=head(CHUNKED),
        again=b"400000\r\n" + bytes(2**22) + b"\r\n",
        uploads=2,
        answers=(b"413", b"408"),
    ),
    "length-of-an-exabyte": partial(
        attack, head=head(b"Content-Length: 1%018d" % 0), again=b"", answers=(b"413",)
    ),
    "nobody-that-is-known": partial(
        attack, head=LONG.replace(b"TOKEN", b"A" * 43), again=b"a", uploads=30, answers=(b"401",)
    ),
}

if __name__ == "__main__":
    sys.exit(
        main(VARIANTS, partial(service, connections=Connections(1000, request_seconds=8.0)), shared=True)
    )
