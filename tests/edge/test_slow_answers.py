"""Answers that come a byte at a time, each in time: as a whole they must end."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from typing import Any

import pytest
from edge_support import COHORT, Cloud, make_sample

from cema.edge.background import Clock
from cema.edge.client import CloudClient
from cema.edge.retry import LinkError
from cema.formats.sample import CONTENT_TYPE, encode_samples

Drip = tuple[bytes, bytes]
Make = Callable[[bytes, bytes], CloudClient]
DRIPS: dict[str, Drip] = {
    "status": (b"", b"H"),
    "headers": (b"HTTP/1.1 200 OK\r\n", b"X: a\r\n"),
    "one header": (b"HTTP/1.1 200 OK\r\nX: ", b"a"),
    "interim answers": (b"", b"HTTP/1.1 103 Early Hints\r\n\r\n"),
    "body": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
}


def drip(connection: socket.socket, begin: bytes, again: bytes, ended: threading.Event) -> None:
    with closing(connection), suppress(OSError):
        connection.recv(65_536)
        connection.sendall(begin)
        for _ in range(250):  # five seconds: without a limit of the device's own the test fails, and ends
            if ended.wait(0.02):
                break
            connection.sendall(again)


@pytest.fixture
def dripping() -> Iterator[Make]:
    """Make a link with a patience of a second to a cloud that drips."""
    with ExitStack() as stack:
        ended = threading.Event()

        def make(begin: bytes, again: bytes) -> CloudClient:
            listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))

            def serve() -> None:
                with suppress(OSError):
                    while True:
                        connection, _ = listener.accept()
                        threading.Thread(
                            target=drip, args=(connection, begin, again, ended), daemon=True
                        ).start()

            threading.Thread(target=serve, daemon=True).start()
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            link = CloudClient(url, COHORT, lambda: "secret", 0.1, Clock())
            stack.callback(link.release)
            return link

        stack.callback(ended.set)
        yield make


@pytest.mark.parametrize("kind", DRIPS)
def test_an_answer_that_drips_ends(dripping: Make, kind: str) -> None:
    with pytest.raises(LinkError, match=r"the answer took over 1 s, .*; giving up"):
        dripping(*DRIPS[kind]).latest_update(None)


def test_it_ends_for_every_request(dripping: Make) -> None:
    link = dripping(*DRIPS["headers"])
    with pytest.raises(LinkError, match=r"POST .* the answer took over 1 s"):
        link.send_samples(b"frame", "application/octet-stream")
    with pytest.raises(LinkError, match=r"artifacts/0.* the answer took over 1 s"):
        link.artifact("0" * 64, 1 << 20)


class SlowToSend(CloudClient):
    """A link on which the body of a request takes longer than an answer may."""

    def _trace(self, sent: Callable[[], None], event: str, info: Any) -> None:
        if event.endswith(".send_request_body.started"):
            threading.Event().wait(1.3)
        super()._trace(sent, event, info)


def test_a_slow_link_may_take_its_time_to_send(cloud: Cloud) -> None:
    link = SlowToSend(cloud.url, COHORT, lambda: cloud.token, 0.1, Clock())
    frame = encode_samples([make_sample(1, size=100_000)])
    assert link.send_samples(frame, CONTENT_TYPE).status == 200
    assert len(cloud.stored) == 1
    link.release()
