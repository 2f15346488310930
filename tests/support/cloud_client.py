"""A served engine with one token of every kind, whose every response is held against the OpenAPI document."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from cloud_support import StillEngine, serving, write_config
from openapi import Declared

from cema.cloud.config import CloudConfig
from cema.cloud.store.base import PublishedUpdate
from cema.formats.sample import CONTENT_TYPE, Sample, encode_samples

LIMITS = """
[limits]
store_bytes = 4194304
body_bytes = 100000
batch_samples = 8
backlog_samples = 20
retry_after_seconds = 7
"""
SOUTH = """
[[cohort]]
name = "south"
bundle = "bundle"
model = "cloud_tiny_models:edge"
foundation = "cloud_tiny_models:foundation"
"""


class Cloud:
    """A served engine and one token of every kind."""

    def __init__(self, engine: StillEngine, url: str) -> None:
        self.engine = engine
        self.store = engine.store
        self.url = url
        # Every response of every test is held against the document.
        self.declared = Declared(httpx2.get(f"{url}/openapi.json").json())
        self.http = httpx2.Client(base_url=url, event_hooks={"response": [self.declared.check]})
        add = engine.devices.add
        self.token = add("cam", cohort="north")
        self.southern = add("far", cohort="south")
        self.operator = add("ops", cohort=None, role="operator")
        self.admin = add("boss", cohort=None, role="admin")
        self.northern_operator = add("ops-north", cohort="north", role="operator")

    def ready(self, **more: object) -> None:
        """Report as a worker does that is ready."""
        for name in ("north", "south"):
            self.store.put_report(name, {"ready": True, **more}, now=time.time())

    def get(
        self, path: str, *, token: str | None = None, headers: dict[str, str] | None = None
    ) -> httpx2.Response:
        return self.http.get(path, headers={**auth(token or self.token), **(headers or {})})

    def post(self, body: bytes, *, cohort: str = "north", **headers: str) -> httpx2.Response:
        sent = {**auth(self.token), "Content-Type": CONTENT_TYPE}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        return self.http.post(f"/v1/cohorts/{cohort}/samples", content=body, headers=sent)

    def send(self, samples: list[Sample]) -> list[tuple[str, str]]:
        response = self.post(encode_samples(samples))
        assert response.status_code == 200
        return [(v["id"], v["verdict"]) for v in response.json()["verdicts"]]

    def publish(
        self, version: int, payload: bytes, *, trace: dict[str, Any] | None = None
    ) -> PublishedUpdate:
        epoch = self.store.claim("north").epoch
        update = PublishedUpdate(
            version,
            hashlib.sha256(payload).hexdigest(),
            b'{"manifest": "...", "signatures": []}',
            payload,
            1.0,
            1e12,
            trace,
        )
        self.store.commit_step("north", 0, b"", update, epoch=epoch, now=1.0)
        return update


def auth(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def refused(response: httpx2.Response, status: int, code: str) -> dict[str, Any]:
    """Check that a response is an error of the protocol and return it."""
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    assert error["code"] == code
    assert error.keys() == {"code", "message", "remedy"}
    assert all(error.values())
    return error


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[Cloud]:
    engine = StillEngine(CloudConfig.load(write_config(tmp_path, extra=LIMITS, cohorts=SOUTH)))
    with serving(engine) as url:
        made = Cloud(engine, url)
        yield made
        made.http.close()
