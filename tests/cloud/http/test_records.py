"""Logs of a cloud under traffic: one record a request, and no secret in any line."""

from __future__ import annotations

import base64
import json
import logging
import shutil
import signal
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx2
import pytest
from cloud_process import Server, eventually
from cloud_support import StillEngine, make_samples, serving, write_config
from cloud_tiny_models import quadrants

from cema import EdgeAgent, EdgeConfig
from cema.cloud import events
from cema.cloud.config import CloudConfig
from cema.edge.config import CloudLink, UpdateConfig, UploadConfig
from cema.formats.sample import CONTENT_TYPE, encode_samples

FIELDS = {"time", "level", "logger", "process", "event", "message"}
SECRET = "a-secret-that-nobody-understood"


def records(caplog: pytest.LogCaptureFixture, count: int) -> list[dict[str, Any]]:
    """Return what was logged of requests, once there is so much: it is written after the answer."""

    def found() -> list[dict[str, Any]]:
        return [
            {"event": one.event, "level": one.levelname, **one.fields}
            for one in caplog.records
            if getattr(one, "event", "").startswith("request.")
        ]

    eventually(lambda: len(found()) >= count)
    return found()


def test_a_request_has_one_record_that_says_who_and_what(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engine = StillEngine(CloudConfig.load(write_config(tmp_path)))
    token = engine.devices.add("cam", cohort="north")
    boss = engine.devices.add("boss", cohort=None, role="operator")
    revoked = engine.devices.add("old", cohort="north")
    engine.devices.revoke("old")
    with caplog.at_level(logging.DEBUG, "cema"), serving(engine) as url, httpx2.Client() as client:

        def ask(method: str, path: str, token: str | None, **more: Any) -> None:
            headers = {"Authorization": f"Bearer {token}"} if token else {}
            client.request(method, url + path, headers={**headers, "Content-Type": CONTENT_TYPE}, **more)

        north = "/v1/cohorts/north"
        ask("POST", f"{north}/samples", token, content=encode_samples(make_samples(2)))
        ask("GET", f"{north}/updates/latest?wait=0.05", token)
        ask("GET", f"{north}/status", boss)
        ask("GET", f"{north}/updates/latest?wait={SECRET}", token)
        ask("POST", f"{north}/samples", boss, content=b"")
        ask("GET", f"{north}/updates/latest", revoked)
        ask("GET", f"/v1/cohorts/{SECRET}/status", token)
        ask("GET", f"{north}/status", SECRET)
        ask("GET", f"/{SECRET}?token={SECRET}", None)
        ask(SECRET.upper(), f"{north}/status", token)
        ask("GET", "/livez", None)
        engine.well = False
        ask("GET", "/readyz", None)
        found = records(caplog, 12)
    samples, status = (f"/v1/cohorts/{{cohort}}/{name}" for name in ("samples", "status"))
    latest = (
        "/updates/latest"  # as the framework has it for a router inside another; the metrics have the same
    )
    got = [
        tuple(one[key] for key in ("event", "level", "method", "route", "status", "device", "cohort"))
        for one in found
    ]
    assert got == [
        ("request.written", "INFO", "POST", samples, 200, "cam", "north"),
        ("request.read", "DEBUG", "GET", latest, 204, "cam", "north"),
        ("request.read", "DEBUG", "GET", status, 200, "boss", "north"),
        ("request.refused", "INFO", "GET", latest, 400, "cam", "north"),
        ("request.refused", "INFO", "POST", samples, 403, "boss", "north"),
        ("request.refused", "INFO", "GET", latest, 403, "old", None),
        ("request.refused", "INFO", "GET", status, 404, "cam", None),
        ("request.refused", "INFO", "GET", status, 401, None, None),
        ("request.refused", "INFO", "any", "unmatched", 404, None, None),
        ("request.refused", "INFO", "other", status, 405, None, None),
        ("request.read", "DEBUG", "GET", "/livez", 200, None, None),
        ("request.failed", "WARNING", "GET", "/readyz", 503, None, None),
    ]
    assert all(one.keys() - {"event", "level"} == events.REQUEST_READ.fields.keys() for one in found)
    assert all(0 <= one["seconds"] < 60 for one in found)
    assert SECRET not in caplog.text.lower()
    for secret in (token, boss, revoked):
        assert secret not in caplog.text


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_cloud_under_traffic_logs_no_secret(factory: Path, tmp_path: Path, form: str) -> None:
    """At the level of most details, with a device that adapts, one without a good token, and a worker that dies."""
    folder = tmp_path / "f"
    shutil.copytree(factory, folder)
    path = folder / "cloud.toml"
    log = f'[log]\nformat = "{form}"\nlevel = "debug"\n\n[worker]'
    path.write_text(path.read_text().replace("[worker]", log))
    config = CloudConfig.load(path)
    with closing(config.open_store()) as store:
        devices = store.devices(["north"])
        names = [devices.add(f"cam-{number}", cohort="north") for number in range(3)]
        devices.revoke("cam-2")
        names.append(devices.renew("cam-0"))
    old, token, revoked, renewed = names
    server = Server(path, token)
    try:
        traffic(server, folder, renewed, (old, revoked, SECRET))
        worker = server.worker()
        assert worker is not None
        worker.kill()
        eventually(lambda: server.get("status").json()["counts"].get("worker.restarts") == 1)
        assert server.end(signal.SIGTERM) == 0
    finally:
        server.close()
    text = (folder / "server.log").read_text()
    for expected in (
        "version 1 published",
        "updates/latest: 204",
        "401",
        "ended with status -9",
        "device cam-0",
    ):
        assert expected in text, text
    private = (folder / "signing.key").read_text()
    secrets = [
        *names,
        SECRET,
        *(line for line in private.splitlines() if "PRIVATE" not in line),
        "PRIVATE KEY",
    ]
    for secret in secrets:
        assert secret not in text
        assert base64.b64encode(secret.encode()).decode().rstrip("=") not in text
    if form == "json":
        lines = [json.loads(line) for line in text.splitlines()]
        assert all(line.keys() >= FIELDS for line in lines)
        assert {line["process"] for line in lines} == {"server", "worker"}
        assert {
            "request.written",
            "request.read",
            "request.refused",
            "update.published",
            "worker.restarted",
        } <= {line["event"] for line in lines}
        for line in lines:
            if line["event"] != "other":
                event = events.EVENTS[line["event"]]
                assert line.keys() - FIELDS - {"exception"} == event.fields.keys()
                assert line["level"] == logging.getLevelName(event.level)
    else:
        assert all(" server " in line or " worker " in line for line in text.splitlines() if line[:2] == "20")


def traffic(server: Server, folder: Path, token: str, bad: tuple[str, ...]) -> None:
    """A device predicts, uploads and fetches; others are refused."""
    device = EdgeConfig(
        bundle=str(folder / "bundle"),
        state=str(folder / "state"),
        cloud=CloudLink(url=server.url, cohort="north", token=token),
        upload=UploadConfig(linger_seconds=0.1),
        update=UpdateConfig(poll_seconds=0.1),
    )
    server.get("updates/latest")  # before there is a version
    with EdgeAgent(device) as agent:
        seed = 0

        def adapted() -> bool:
            nonlocal seed
            seed += 1
            agent.predict(list(quadrants(32, seed, drift=True)[0]))
            agent.flush(5.0)
            return agent.status().version > 0

        eventually(adapted)
    for wrong in bad:
        answer = httpx2.get(
            f"{server.url}/v1/cohorts/north/status?token={wrong}",
            headers={"Authorization": f"Bearer {wrong}"},
        )
        assert answer.status_code in (401, 403)
        assert httpx2.get(f"{server.url}/{wrong}").status_code == 404
        httpx2.post(
            f"{server.url}/v1/cohorts/north/samples",
            content=wrong.encode(),
            headers={"Authorization": f"Bearer {token}", "Content-Type": CONTENT_TYPE},
        )
