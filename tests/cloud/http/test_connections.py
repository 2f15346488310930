"""Connections that do nothing, and bodies that hardly come."""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx2
import pytest
from cloud_client import auth
from cloud_support import StillEngine, make_samples, serving, write_config

from cema.cloud.config import CloudConfig
from cema.cloud.http import body, service
from cema.cloud.http.connections import Connections, guarded_protocol
from cema.formats.sample import CONTENT_TYPE, encode_samples

HEAD = b"GET /livez HTTP/1.1\r\nHost: cloud\r\n"


class Guarded:
    """A server with few connections and little patience."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.connections = Connections(4, header_seconds=0.5, request_seconds=2.0)
        engine = StillEngine(CloudConfig.load(write_config(folder)))
        self.url = stack.enter_context(serving(engine, http=guarded_protocol(self.connections)))
        self.engine = engine
        self.token = engine.devices.add("cam", cohort="north")
        self.other = engine.devices.add("other", cohort="north")
        self._stack = stack

    def connect(self, data: bytes = b"") -> socket.socket:
        port = int(self.url.rpartition(":")[2])
        opened = self._stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20))
        opened.sendall(data)
        return opened

    def upload_head(self, token: str, length: int = 1000) -> bytes:
        lines = [
            "POST /v1/cohorts/north/samples HTTP/1.1", "Host: cloud", f"Content-Length: {length}",
            f"Content-Type: {CONTENT_TYPE}", f"Authorization: Bearer {token}",
        ]  # fmt: skip
        return "\r\n".join([*lines, "", ""]).encode()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Guarded]:
    with ExitStack() as stack:
        yield Guarded(tmp_path, stack)


def closed(connection: socket.socket) -> bool:
    """Wait for the end of a connection; what came before it is thrown away."""
    try:
        while connection.recv(65_536):
            pass
    except ConnectionResetError:
        pass
    return True


def eventually(happens: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not happens():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("sent", [b"", b"G", HEAD])
def test_a_connection_without_a_whole_request_is_closed(server: Guarded, sent: bytes) -> None:
    assert closed(server.connect(sent))


def test_a_byte_now_and_then_gives_no_more_time(server: Guarded) -> None:
    connection = server.connect(HEAD + b"X-Slow: ")

    def send() -> bool:
        try:
            connection.sendall(b"a")
        except OSError:
            return True
        return False

    eventually(send)  # the server closes it while it is still sent to


def test_a_request_after_others_may_be_as_slow_as_the_first(server: Guarded) -> None:
    connection = server.connect()
    for _ in range(2):
        connection.sendall(HEAD + b"\r\n")
        answer = b""
        while not answer.endswith(b"}"):
            answer += connection.recv(65_536)
        assert answer.startswith(b"HTTP/1.1 200")
    connection.sendall(HEAD)
    assert closed(connection)


def test_silent_connections_keep_nobody_out(server: Guarded) -> None:
    silent = [server.connect() for _ in range(40)]
    for _ in range(5):
        assert httpx2.get(f"{server.url}/livez").status_code == 200
    assert len(server.connections) <= 4
    assert all(closed(connection) for connection in silent)
    eventually(lambda: len(server.connections) == 0)


def test_a_connection_with_a_request_is_not_closed_for_a_silent_one(server: Guarded) -> None:
    frame = encode_samples(make_samples(1))
    working = server.connect(server.upload_head(server.token, len(frame)))
    eventually(lambda: len(server.connections) == 1 and not server.connections._waiting)
    for _ in range(20):
        server.connect()
    working.sendall(frame)
    assert working.recv(65_536).startswith(b"HTTP/1.1 200")


def test_a_request_that_never_ends_is_closed(server: Guarded) -> None:
    assert closed(server.connect(server.upload_head(server.token)))


def test_trickling_uploads_of_one_device_leave_places_for_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "UPLOADS_AT_ONCE", service.UPLOADS_OF_ONE + 1)
    frame = encode_samples(make_samples(1))
    with ExitStack() as stack:
        server = Guarded(tmp_path, stack)
        server.connections.most, server.connections.seconds["request"] = 100, 60.0
        trickling = [server.connect(server.upload_head(server.token)) for _ in range(30)]
        answered: list[socket.socket] = []

        def refused() -> bool:
            answered[:] = select.select(trickling, [], [], 0.1)[0]
            return len(answered) == len(trickling) - service.UPLOADS_OF_ONE

        eventually(refused)
        answers = [connection.recv(4096) for connection in answered]
        assert all(
            answer.startswith(b"HTTP/1.1 503") and b"retry-after" in answer.lower() for answer in answers
        )
        headers = {**auth(server.other), "Content-Type": CONTENT_TYPE}
        response = httpx2.post(f"{server.url}/v1/cohorts/north/samples", content=frame, headers=headers)
        assert response.status_code == 200


def slow_senders(server: Guarded, count: int, length: int) -> list[socket.socket]:
    """Begin an upload of each of so many devices; of each body only one byte comes."""
    server.connections.most, server.connections.seconds["request"] = 100, 60.0
    tokens = [server.engine.devices.add(f"slow-{i}", cohort="north") for i in range(count)]
    return [server.connect(server.upload_head(token, length) + b"x") for token in tokens]


def upload(server: Guarded) -> int:
    headers = {**auth(server.token), "Content-Type": CONTENT_TYPE}
    frame = encode_samples(make_samples(1))
    return httpx2.post(f"{server.url}/v1/cohorts/north/samples", content=frame, headers=headers).status_code


def test_small_bodies_of_many_slow_devices_keep_nobody_out(server: Guarded) -> None:
    slow = slow_senders(server, service.UPLOADS_AT_ONCE + 8, 1000)
    eventually(lambda: len(server.connections) == len(slow) and not server.connections._waiting)
    assert [upload(server) for _ in range(3)] == [200] * 3


def test_large_bodies_of_slow_devices_are_bounded(server: Guarded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "UPLOADS_AT_ONCE", 2)
    senders = slow_senders(server, 3, server.engine.config.limits.body_bytes)
    # Whichever of them comes last.
    refused = select.select(senders, [], [], 20)[0]
    assert [sender.recv(4096)[:12] for sender in refused] == [b"HTTP/1.1 503"]
    assert upload(server) == 503
    for sender in senders:
        sender.close()
    eventually(lambda: upload(server) == 200)


def test_uploads_that_have_arrived_wait_for_a_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "UPLOADS_AT_ONCE", 1)
    monkeypatch.setattr(service, "STORING_SECONDS", 60.0)
    frames = [encode_samples(make_samples(1, seed=i)) for i in range(8)]
    with ExitStack() as stack:
        server = Guarded(tmp_path, stack)
        server.connections.most, server.connections.seconds["request"] = 100, 60.0
        tokens = [server.engine.devices.add(f"cam-{i}", cohort="north") for i in range(8)]
        with server.engine.store.database.write():  # nobody can store
            sent = [
                server.connect(server.upload_head(token, len(frame)) + frame)
                for token, frame in zip(tokens, frames, strict=True)
            ]
            eventually(lambda: len(server.connections) == 8 and not server.connections._waiting)
            assert not select.select(sent, [], [], 0.1)[0]
        assert [connection.recv(12) for connection in sent] == [b"HTTP/1.1 200"] * 8


def test_an_upload_that_waits_too_long_for_a_place_is_503(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "UPLOADS_AT_ONCE", 1)
    monkeypatch.setattr(service, "STORING_SECONDS", 0.2)
    frame = encode_samples(make_samples(1))
    with ExitStack() as stack:
        server = Guarded(tmp_path, stack)
        server.connections.seconds["request"] = 60.0
        with server.engine.store.database.write():
            first = server.connect(server.upload_head(server.token, len(frame)) + frame)
            eventually(lambda: len(server.engine.store._samples._group) == 1)
            second = server.connect(server.upload_head(server.other, len(frame)) + frame)
            answer = second.recv(4096)
        assert answer.startswith(b"HTTP/1.1 503")
        assert b"retry-after" in answer.lower()
        assert first.recv(12) == b"HTTP/1.1 200"


def test_a_body_that_hardly_comes_is_408(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body, "FIRST_SECONDS", 0.2)
    with ExitStack() as stack:
        server = Guarded(tmp_path, stack)
        server.connections.seconds["request"] = 60.0
        connection = server.connect(server.upload_head(server.token, 10**6) + bytes(50))
        assert connection.recv(4096).startswith(b"HTTP/1.1 408")
        assert closed(connection)
