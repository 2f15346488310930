"""Ids, headers, tags and texts of megabytes, sent to be repeated in answers, or to be read in quadratic time.

Stopped by limits on everything that is repeated, and by reading every list once. REFUSED: each answer comes in time and
has less than 4 KiB, the device's own messages stay as short, and honest devices get through.

    python attacks/long_echo.py
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from http.server import BaseHTTPRequestHandler
from typing import Any

import httpx2
import msgspec

from _cloud import Service, make_samples, service
from _edge import COHORT, Device
from _edge import Cloud as Hostile
from _parts import check, eventually, main
from cema.formats.sample import encode_samples

LONG, SHORT = 2**20, 4096


def request(cloud: Service, *, send: Callable[[Service], httpx2.Response]) -> None:
    """Make a request; a connection that is closed is an answer, too."""
    try:
        answer = send(cloud)
    except (httpx2.ReadError, httpx2.WriteError, httpx2.RemoteProtocolError):
        pass
    else:
        check(len(answer.content) < SHORT, f"the answer has {len(answer.content)} bytes")
        check(len(str(answer.headers)) < SHORT, "the answer's headers are long")
        check(answer.status_code < 500, f"the cloud answers {answer.status_code}")
    cloud.takes_honest_samples()


def frame(cloud: Service, *, make: Callable[[], Any]) -> httpx2.Response:
    return cloud.post(msgspec.msgpack.encode(make()))


def long_id(cloud: Service) -> httpx2.Response:
    return cloud.post(encode_samples([msgspec.structs.replace(make_samples(1)[0], id="x" * LONG)]))


def get(
    cloud: Service, *, path: str = f"/v1/cohorts/{COHORT}/updates/latest", **headers: str
) -> httpx2.Response:
    return cloud.get(path, **{name.replace("_", "-"): value for name, value in headers.items()})


def told_to_a_device(
    cloud: Service, *, status: int, body: bytes, header: tuple[str, str] = ("X", "x")
) -> None:
    """Answer a device's uploads with long texts; what it says of them must be short."""
    hostile = Hostile()

    def instead(handler: BaseHTTPRequestHandler) -> bool:
        handler.send_response(status)
        handler.send_header(*header)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)
        return True

    hostile.instead = instead
    device = Device(cloud.new_folder(), hostile.url)
    try:
        device.see(8)
        eventually(lambda: "uploader" in (device.agent.status().last_error or ""), "the device says nothing")
        said = device.agent.status().last_error or ""
        check(len(said) < SHORT and said.isprintable(), f"the device's message has {len(said)} characters")
        hostile.instead = lambda _: False
        check(device.agent.flush(15), "the samples are not delivered")
    finally:
        device.agent.close()
        hostile.close()


ERROR = json.dumps({"error": {"code": "c" * LONG, "message": "m" * LONG, "remedy": "r" * LONG}}).encode()
REQUESTS: dict[str, Callable[[Service], httpx2.Response]] = {
    "id": long_id,
    "format": partial(frame, make=lambda: {"format": "y" * LONG, "samples": []}),
    "unknown-member": partial(frame, make=lambda: {"format": "cema.samples/1", "samples": [], "z" * LONG: 1}),
    "unknown-field": partial(frame, make=lambda: {"format": "cema.samples/1", "samples": [{"w" * LONG: 1}]}),
    "nested-arrays": lambda cloud: cloud.post(b"\x91" * LONG),
    "cohort": partial(get, path=f"/v1/cohorts/{'c' * 40_000}/status"),
    "digest": partial(get, path=f"/v1/cohorts/{COHORT}/artifacts/{'d' * 40_000}"),
    "path": partial(get, path="/" + "p/" * 20_000),
    "header-of-a-megabyte": partial(get, X_Long="h" * LONG),
    "entity-tags": partial(get, If_None_Match='"t",' * 10_000),
    "entity-tags-of-commas": partial(get, If_None_Match="a, " * 15_000 + '"t"'),
    "content-type": lambda cloud: cloud.post(b"", **{"Content-Type": "t/" + "k" * 40_000}),
    "token": lambda cloud: cloud.get("/metrics", token="t" * 40_000),
}
VARIANTS: dict[str, Callable[[Service], None]] = {
    **{name: partial(request, send=send) for name, send in REQUESTS.items()},
    "error-to-a-device": partial(told_to_a_device, status=500, body=ERROR),
    "page-to-a-device": partial(told_to_a_device, status=200, body=b"<html><title>" + b"t" * 500_000),
    "redirect-of-a-device": partial(
        told_to_a_device, status=302, body=b"", header=("Location", "http://a.example/" + "l" * 50_000)
    ),
}

if __name__ == "__main__":
    sys.exit(main(VARIANTS, service, shared=True))
