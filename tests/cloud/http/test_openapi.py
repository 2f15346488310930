"""The OpenAPI document and the application: every declared error can happen, and nothing else happens."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import numpy as np
import pytest
from bundle_offer import migrated, sha256
from cloud_client import LIMITS, SOUTH
from cloud_support import StillEngine, make_samples, samples_of, write_config
from hypothesis import given, settings
from hypothesis import strategies as st
from openapi import Declared

from cema._util.version import __version__
from cema.cloud.config import CloudConfig, LimitsConfig
from cema.cloud.http import body, service, sessions
from cema.cloud.http import overview as http_overview
from cema.cloud.http.app import create_app
from cema.cloud.http.rate import DeviceRates
from cema.cloud.store.base import PublishedUpdate
from cema.cloud.store.fleet import Expire
from cema.formats.report import DeviceReport, Served, encode_report
from cema.formats.sample import CONTENT_TYPE, encode_samples

PAYLOAD = b"a payload"
DIGEST = hashlib.sha256(PAYLOAD).hexdigest()
ENVELOPE = {
    "manifest": base64.b64encode(b"{}").decode(),
    "signatures": [{"key": "0" * 16, "signature": base64.b64encode(bytes(64)).decode()}],
}
SAMPLES = "/v1/cohorts/{cohort}/samples"
LATEST = "/v1/cohorts/{cohort}/updates/latest"
ARTIFACT = "/v1/cohorts/{cohort}/artifacts/{digest}"
KEYS = "/v1/cohorts/{cohort}/keys"
BUNDLE = "/v1/cohorts/{cohort}/bundle"
BUNDLE_FILE = "/v1/cohorts/{cohort}/bundles/{digest}"
BASES = "/v1/cohorts/{cohort}/bases"
STATUS = "/v1/cohorts/{cohort}/status"
VERSIONS = "/v1/cohorts/{cohort}/versions"
ACTS = "/v1/cohorts/{cohort}/acts"
REPORTS = "/v1/cohorts/{cohort}/reports"
DEVICES = "/v1/cohorts/{cohort}/devices"
DEVICE_ACTS = "/v1/cohorts/{cohort}/devices/{name}/acts"
DATA = "/v1/cohorts/{cohort}/data"
SAMPLE = "/v1/cohorts/{cohort}/data/{id}"
DELETIONS = "/v1/cohorts/{cohort}/deletions"
LABELS = "/v1/cohorts/{cohort}/labels"
SESSION = "/v1/session"
OVERVIEW = "/v1/overview"
EVENTS = "/v1/events"
HISTORY = "/v1/cohorts/{cohort}/history"
MEASURES = "/v1/cohorts/{cohort}/measures"
IMAGE = "/v1/cohorts/{cohort}/samples/{id}/image"
VERSION = "/v1/cohorts/{cohort}/versions/{version}"
DOMAINS = "/v1/cohorts/{cohort}/domains"
DEVICE = "/v1/cohorts/{cohort}/devices/{name}"
KNOWN = make_samples(1, seed=500)[0]
TOLD_TO_OPERATORS = (
    VERSIONS,
    ACTS,
    BASES,
    DEVICES,
    DATA,
    SAMPLE,
    DELETIONS,
    HISTORY,
    SAMPLES,
    IMAGE,
    VERSION,
    DOMAINS,
    DEVICE,
)
ADMINISTRATORS_WRITE = (ACTS, DEVICES, DEVICE_ACTS, DELETIONS, LABELS, MEASURES)
# Codes that a client in this process does not see: it waits for its response, and nobody stops the server.
UNSEEN = {"disconnected", "stopping"}


class Api:
    """The application, called in this process; every response is checked against the document."""

    def __init__(self, folder: Path) -> None:
        self.engine = StillEngine(CloudConfig.load(write_config(folder, extra=LIMITS, cohorts=SOUTH)))
        self.app = create_app(self.engine)
        self.document: dict[str, Any] = self.app.openapi()
        self.declared = Declared(self.document)
        self.seen: set[tuple[str, str, str | None]] = set()
        add = self.engine.devices.add
        self.tokens = {
            "device": add("cam", cohort="north"),
            "operator": add("ops-north", cohort="north", role="operator"),
            "chief": add("ops", cohort=None, role="operator"),
            "admin": add("boss", cohort="north", role="admin"),
            "revoked": add("old", cohort="north"),
            "expired": add("late", cohort="north"),
        }
        self.engine.devices.revoke("old")
        self.engine.devices.act("late", Expire(at=5.0))

    def __call__(
        self,
        method: str,
        path: str,
        *,
        who: str | None = "device",
        cohort: str = "north",
        digest: str = DIGEST,
        name: str = "cam",
        id: str = KNOWN.id,
        version: object = 1,
        headers: dict[str, str] | None = None,
        content: bytes | AsyncIterator[bytes] | None = None,
    ) -> httpx2.Response:
        sent = {"Content-Type": CONTENT_TYPE} if method == "POST" else {}
        if who is not None:
            sent["Authorization"] = f"Bearer {self.tokens.get(who, who)}"
        sent |= headers or {}
        url = f"http://cloud{path.format(cohort=cohort, digest=digest, name=name, id=id, version=version)}"

        async def call() -> httpx2.Response:
            transport = httpx2.ASGITransport(app=self.app, raise_app_exceptions=False)
            async with httpx2.AsyncClient(transport=transport) as client:
                return await client.request(method, url, headers=sent, content=content)

        response = asyncio.run(call())
        self.declared.check(response)
        code = response.json()["error"]["code"] if response.status_code >= 400 else None
        self.seen.add((path.partition("?")[0], str(response.status_code), code))
        return response

    def publish(self) -> None:
        update = PublishedUpdate(1, DIGEST, json.dumps(ENVELOPE).encode(), PAYLOAD, 1.0, 1e12)
        epoch = self.engine.store.claim("north").epoch
        self.engine.store.commit_step("north", 0, b"", update, epoch=epoch, now=1.0)


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    made = Api(tmp_path)
    yield made
    made.engine.stop()


def test_the_body_of_an_upload_is_described(api: Api) -> None:
    content = api.document["paths"][SAMPLES]["post"]["requestBody"]["content"]
    assert content == {CONTENT_TYPE: {"schema": {"type": "string", "format": "binary"}}}


def test_every_endpoint_responds_as_declared(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    before_the_first_update(api)
    api.publish()
    wrong_senders(api)
    wrong_uploads(api, monkeypatch)
    wrong_acts(api, monkeypatch)
    reports(api, monkeypatch)
    wrong_data(api, monkeypatch)
    good_acts(api)
    acts_on_devices(api, monkeypatch)
    good_data(api)
    page(api, monkeypatch)
    good_requests(api)
    good_history(api)
    full(api)
    faults(api)
    declared = {
        (path, status, code)
        for path, methods in api.document["paths"].items()
        for operation in methods.values()
        for status, response in operation["responses"].items()
        if status != "default"
        for code in codes(response)
    }
    assert declared >= api.seen
    missing = declared - api.seen
    # Two read nothing that could fail, and for two a fault of the store is what they are there to tell.
    fixed = {(path, "500", "internal") for path in ("/livez", "/openapi.json", "/readyz", "/healthz")}
    assert {one for one in missing if one[2] not in UNSEEN} == fixed


def codes(response: dict[str, Any]) -> list[str | None]:
    """Return the error codes of a declared response, or [None] for a success."""
    schema = response.get("content", {}).get("application/json", {}).get("schema", {})
    if "properties" not in schema:
        return [None]
    return list(schema["properties"]["error"]["properties"]["code"]["enum"])


def before_the_first_update(api: Api) -> None:
    assert api("GET", LATEST).status_code == 204
    assert api("GET", KEYS).status_code == 204
    assert api("GET", BUNDLE).status_code == 204
    status = api("GET", STATUS).json()
    assert (status["update"], status["worker"]) == (None, {"ready": False})


def wrong_senders(api: Api) -> None:
    told = (LATEST, ARTIFACT, KEYS, BUNDLE, BUNDLE_FILE, STATUS, *TOLD_TO_OPERATORS)
    reads = [("GET", path) for path in told]
    writes = [("POST", path) for path in (SAMPLES, REPORTS, *ADMINISTRATORS_WRITE)]
    for method, path in (*writes, *reads):
        for who in (None, "nobody", "revoked", "expired"):
            api(method, path, who=who)
        api(method, path, cohort="west")
        api(method, path, cohort="south")
    api("GET", f"{LATEST}?wait=-1")
    for who in (None, "revoked", "expired", "device", "operator"):
        api("GET", "/metrics", who=who)
    for path in TOLD_TO_OPERATORS:
        api("GET", path, who="device")
    for path in (SESSION, OVERVIEW, EVENTS):
        for who in (None, "revoked", "expired", "device"):
            api("GET", path, who=who)
    for who in ("device", "operator", "chief"):
        for path in ADMINISTRATORS_WRITE:
            api("POST", path, who=who)


def page(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    async def never() -> AsyncIterator[bytes]:
        await asyncio.Event().wait()
        yield b""

    from_page = {"CEMA-Page": "1"}

    def sign_in(who: str, **more: Any) -> httpx2.Response:
        sent = {"content": json.dumps({"token": api.tokens.get(who, who)}).encode(), "headers": from_page}
        return api("POST", SESSION, who=None, **sent | more)

    sign_in("operator", headers={})
    for who in ("nobody", "revoked", "expired", "device"):
        sign_in(who)
    sign_in("operator", content=b"{}")
    sign_in("operator", content=bytes(5000))
    with monkeypatch.context() as patch:
        patch.setattr(body, "FIRST_SECONDS", 0.01)
        sign_in("operator", content=never())
    with monkeypatch.context() as patch:
        patch.setattr(sessions, "sessions_of", lambda store: None)
        sign_in("operator")
    cookie = {"Cookie": sign_in("operator").headers["set-cookie"].partition(";")[0]}
    assert api("GET", SESSION, who=None, headers=cookie).json()["cohorts"] == ["north"]
    boss = {"Cookie": sign_in("admin").headers["set-cookie"].partition(";")[0]}
    for path in ADMINISTRATORS_WRITE:
        api("POST", path, who=None, headers=boss, content=b"{}")
    api("DELETE", SESSION, who=None, headers=cookie)
    api("DELETE", SESSION, who=None, headers=cookie | from_page)
    api("GET", SESSION, who=None, headers=cookie)
    api("GET", OVERVIEW, who="operator")
    with monkeypatch.context() as patch:
        patch.setattr(http_overview, "QUIET_SECONDS", 0.01)
        patch.setattr(http_overview, "_still_may", lambda *_: False)
        api("GET", EVENTS, who="operator")
    with monkeypatch.context() as patch:
        patch.setattr(api.app.state.service.live, "most", 0)
        api("GET", EVENTS, who="operator")


def wrong_uploads(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    async def never() -> AsyncIterator[bytes]:
        await asyncio.Event().wait()
        yield b""

    api("POST", SAMPLES, who="operator", content=b"")
    api("POST", SAMPLES, headers={"Content-Type": "text/plain"}, content=b"")
    api("POST", SAMPLES, content=b"garbage")
    api("POST", SAMPLES, content=bytes(100_001))
    api("POST", SAMPLES, content=encode_samples(make_samples(9)))
    with monkeypatch.context() as patch:
        rates = DeviceRates(LimitsConfig(device_samples=0.1), api.engine.devices)
        patch.setattr(api.app.state.service, "rates", rates)
        for seed in (70, 71):
            api("POST", SAMPLES, content=encode_samples(make_samples(3, seed=seed)))
    with monkeypatch.context() as patch:
        patch.setattr(body, "FIRST_SECONDS", 0.01)
        api("POST", SAMPLES, content=never())
    with monkeypatch.context() as patch:
        patch.setattr(service, "STORING_SECONDS", 0.01)
        patch.setattr(api.app.state.service, "_places", asyncio.Semaphore(0))
        api("POST", SAMPLES, content=b"")


def wrong_acts(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    async def never() -> AsyncIterator[bytes]:
        await asyncio.Event().wait()
        yield b""

    api("GET", f"{ACTS}?limit=0", who="admin")
    api("POST", ACTS, who="admin", content=bytes(5000))
    wrong = (
        b"",
        b"\xff",
        b"{}",
        b'{"type": "erase"}',
        b'{"type": "pin", "to": 0}',
        b'{"type": "pin", "to": 1e40}',
    )
    for content in (*wrong, b'{"type": "pause", "to": 1}', b"[" * 4000):
        assert api("POST", ACTS, who="admin", content=content).status_code == 400
    for content in (b'{"type": "pin", "to": 9}', b'{"type": "canary", "first": 0.5}'):
        assert api("POST", ACTS, who="admin", content=content).status_code == 409
    with monkeypatch.context() as patch:
        patch.setattr(body, "FIRST_SECONDS", 0.01)
        api("POST", ACTS, who="admin", content=never())
    assert api("GET", ACTS, who="admin").json() == {"acts": []}


def reports(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    async def never() -> AsyncIterator[bytes]:
        await asyncio.Event().wait()
        yield b""

    good = DeviceReport(boot="0" * 16, number=1, serving=Served(version=1))
    assert api("POST", REPORTS, content=encode_report(good)).status_code == 204
    api("POST", REPORTS, who="operator", content=encode_report(good))
    for content in (b"", b"\xff", b"{}", b"[" * 4000):
        assert api("POST", REPORTS, content=content).status_code == 400
    api("POST", REPORTS, content=bytes(5000))
    with monkeypatch.context() as patch:
        patch.setattr(body, "FIRST_SECONDS", 0.01)
        api("POST", REPORTS, content=never())


def wrong_data(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    async def never() -> AsyncIterator[bytes]:
        await asyncio.Event().wait()
        yield b""

    for query in ("class=-1", "class=cat", "from=nan", "to=soon", "from=inf", f"class={10**30}"):
        assert api("GET", f"{DATA}?{query}", who="admin").status_code == 400
    assert api("GET", f"{DELETIONS}?limit=0", who="admin").status_code == 400
    for unknown in ("0" * 64, "short", "%00", "ab cd"):
        assert api("GET", SAMPLE, who="operator", id=unknown).status_code == 404
        assert api("GET", IMAGE, who="operator", id=unknown).status_code == 404
    wrong: dict[str, tuple[bytes, ...]] = {
        DELETIONS: (
            b"{}",
            b'{"all": false}',
            b'{"all": true, "device": "cam"}',
            b'{"device": 3}',
            b'{"class": -1}',
            b'{"from": 1e999}',
            b'{"camera": "cam"}',
        ),
        MEASURES: (
            b"{}",
            b'{"measures": {}}',
            b'{"measures": {"entropy": [1, 1]}}',
            b'{"measures": {"labelled.A": [1, 1]}}',
            b'{"measures": {"labelled.a": [1]}}',
            b'{"measures": {"labelled.a": [1, 2]}}',
            b'{"measures": {"labelled.a": [1, -1]}}',
            b'{"measures": {"labelled.a": [1e999, 1]}}',
        ),
        LABELS: (b"{}", b'{"labels": []}', b'{"labels": {"a": 1.5}}', b'{"labels": {"a": null}}'),
    }
    for path, bodies in wrong.items():
        for content in (*bodies, b"", b"\xff", b"[" * 4000):
            assert api("POST", path, who="admin", content=content).status_code == 400, content
        assert api("POST", path, who="admin", content=bytes(5 * 2**20)).status_code == 413
        with monkeypatch.context() as patch:
            patch.setattr(body, "FIRST_SECONDS", 0.01)
            api("POST", path, who="admin", content=never())
    assert api("GET", DELETIONS, who="admin").json() == {"deletions": []}
    assert api("GET", f"{SAMPLES}?limit=0", who="admin").status_code == 400
    for query in ("since=9&until=5", "points=0", "points=5000", "since=-1", "until=soon"):
        assert api("GET", f"{HISTORY}?{query}", who="admin").status_code == 400


def good_data(api: Api) -> None:
    before = api("POST", DELETIONS, who="admin", content=b'{"to": 1e12}').json()
    assert (before["state"], before["filter"]) == ("waiting", {"to": 1e12})
    other = make_samples(2, seed=501)
    assert api("POST", SAMPLES, content=encode_samples([KNOWN, *other])).status_code == 200
    found = api("GET", f"{DATA}?device=cam&class=1&from=0&to=1e12", who="operator").json()
    assert (found["samples"], found["groups"][0]["label"]) == (1, 1)
    told = api("GET", SAMPLE, who="chief").json()
    assert (told["id"], told["device"], told["waiting"], told["truth"]) == (KNOWN.id, "cam", True, None)
    labels = {KNOWN.id: 3, other[0].id: "2", other[1].id: "cat", "0" * 64: 1, "no id": 1}
    taken = api("POST", LABELS, who="admin", content=json.dumps({"labels": labels}).encode()).json()
    assert (taken["new"], taken["changed"], taken["same"]) == (2, 0, 0)
    assert [refused["id"] for refused in taken["refused"]] == [other[1].id, "no id", "0" * 64]
    assert api("GET", SAMPLE, who="operator").json()["truth"] == 3
    shown = api("GET", f"{SAMPLES}?device=cam", who="operator").json()["samples"]
    assert (shown[-1]["id"], shown[-1]["truth"]) == (KNOWN.id, 3)
    assert api("GET", IMAGE, who="operator").content.startswith(b"\x89PNG")  # it was sent raw
    configs = api.app.state.service._configs
    configs["north"] = msgspec.structs.replace(configs["north"], private=True)
    assert api("GET", IMAGE, who="operator").json()["error"]["code"] == "private"
    configs["north"] = msgspec.structs.replace(configs["north"], private=False)
    first = api("POST", DELETIONS, who="admin", content=b'{"device": "cam", "class": 3}')
    assert first.status_code == 202
    assert (first.json()["samples"], first.json()["state"], first.json()["actor"]) == (
        1,
        "waiting",
        "token:boss",
    )
    assert api("GET", SAMPLE, who="operator").status_code == 404
    assert api("POST", DELETIONS, who="admin", content=b'{"all": true}').json()["samples"] == 2
    told = api("GET", DELETIONS, who="operator").json()["deletions"]
    assert [deletion["filter"] for deletion in told] == [{}, {"device": "cam", "class": 3}, {"to": 1e12}]
    gone = api("POST", LABELS, who="admin", content=json.dumps({"labels": {KNOWN.id: 3}}).encode()).json()
    assert "was deleted" in gone["refused"][0]["error"]
    assert (
        api("POST", SAMPLES, content=encode_samples([KNOWN])).json()["verdicts"][0]["verdict"] == "duplicate"
    )
    acts = [one.act for one in api.engine.store.audit(limit=100)]
    assert [act.actor for act in acts if act.name.startswith("data.")] == ["token:boss"] * 4


def good_history(api: Api) -> None:
    given = b'{"measures": {"labelled.adapted": [8, 6]}}'
    for _ in range(2):
        assert api("POST", MEASURES, who="admin", content=given).status_code == 204
    api.app.state.service.history.write()
    told = api("GET", f"{HISTORY}?since=0&points=10", who="operator").json()
    assert told["measures"]["labelled.adapted"] == {"count": [16.0], "total": [12.0]}
    assert {"samples", "entropy", "bytes.up"} <= told["measures"].keys()
    assert [known["version"] for known in told["versions"]] == [1]


def good_acts(api: Api) -> None:
    for content in (
        b'{"type": "pin", "to": 1}',
        b'{"type":"rollback","to":1}',
        b'{"type": "stop"}',
        b'{"type": "resume"}',
    ):
        assert api("POST", ACTS, who="admin", content=content).status_code == 202
    acts = api("GET", ACTS, who="operator").json()["acts"]
    assert [(act["act"]["type"], act["state"], act["actor"]) for act in acts] == [
        ("resume", "done", "token:boss"),
        ("stop", "superseded", "token:boss"),
        ("rollback", "superseded", "token:boss"),
        ("pin", "superseded", "token:boss"),
    ]
    for unknown, status in ((9, 404), (0, 400), ("newest", 400)):
        assert api("GET", VERSION, who="operator", version=unknown).status_code == status
    shown = api("GET", VERSION, who="operator").json()
    assert (shown["digest"], shown["moved"], shown["adoption"]["offered"]) == (DIGEST, None, 1)
    assert api("GET", DOMAINS, who="operator").json()["points"] == []
    (version,) = api("GET", VERSIONS, who="chief").json()["versions"]
    assert (version["version"], version["digest"]) == (1, DIGEST)
    assert api("POST", ACTS, who="admin", content=b'{"type": "stop"}').status_code == 202
    status = api("GET", STATUS).json()
    assert (status["publishing"], status["act"]["act"]) == ("stopped", {"type": "stop"})
    assert api("POST", ACTS, who="admin", content=b'{"type": "resume"}').status_code == 202


def acts_on_devices(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    async def never() -> AsyncIterator[bytes]:
        await asyncio.Event().wait()
        yield b""

    added = api("POST", DEVICES, who="admin", content=b'{"devices": [{"name": "new"}]}')
    assert added.status_code == 201
    assert api("POST", DEVICES, who="admin", content=b'{"devices": [{"name": "new"}]}').status_code == 409
    renewed = api("POST", DEVICE_ACTS, who="admin", name="new", content=b'{"type": "renew"}')
    assert (renewed.status_code, len(renewed.json()["token"])) == (200, 43)
    release, revoke = b'{"type": "release"}', b'{"type": "revoke"}'
    assert api("POST", DEVICE_ACTS, who="admin", name="new", content=release).status_code == 409
    assert api("POST", DEVICE_ACTS, who="admin", name="nobody", content=revoke).status_code == 404
    for path in (DEVICES, DEVICE_ACTS):
        assert api("POST", path, who="admin", content=b"{}").status_code == 400
        assert api("POST", path, who="admin", content=bytes(300_000)).status_code == 413
        with monkeypatch.context() as patch:
            patch.setattr(body, "FIRST_SECONDS", 0.01)
            api("POST", path, who="admin", content=never())
    assert api("GET", f"{DEVICES}?limit=0", who="operator").status_code == 400
    assert api("GET", DEVICE, who="operator", name="nobody").status_code == 404
    assert api("GET", DEVICE, who="operator", name="new").json()["problems"] == []
    assert "new" in {device["name"] for device in api("GET", DEVICES, who="operator").json()["devices"]}


def good_requests(api: Api) -> None:
    good = make_samples(2)
    for _ in range(2):
        assert api("POST", SAMPLES, content=encode_samples(good)).status_code == 200
    spoilt = encode_samples(good).replace(good[0].image, bytes(len(good[0].image)))
    (rejected, _) = api("POST", SAMPLES, content=spoilt).json()["verdicts"]
    assert rejected["verdict"] == "rejected"
    signed = json.dumps(ENVELOPE).encode()
    api.engine.store.put_keys_document("north", 1, signed)
    keys = b'{"documents":[' + signed + b"]}"
    for path, content in ((LATEST, signed), (ARTIFACT, PAYLOAD), (KEYS, keys)):
        response = api("GET", path)
        assert response.content == content
        assert api("GET", path, headers={"If-None-Match": response.headers["etag"]}).status_code == 304
    api("GET", ARTIFACT, digest="0" * 64)
    notice, files = migrated(api.engine)
    for path, content in ((BUNDLE, notice), (BUNDLE_FILE, files["norm.bin"])):
        response = api("GET", path, digest=sha256(files["norm.bin"]))
        assert (response.status_code, response.content) == (200, content)
        known = {"If-None-Match": response.headers["etag"]}
        assert api("GET", path, digest=sha256(files["norm.bin"]), headers=known).status_code == 304
    part = api("GET", BUNDLE_FILE, digest=sha256(files["norm.bin"]), headers={"Range": "bytes=1-2"})
    assert (part.status_code, part.content) == (206, files["norm.bin"][1:3])
    api("GET", BUNDLE_FILE, digest="0" * 64)
    assert api("GET", f"{LATEST}?base={'1' * 64}").headers["CEMA-Base"] == "1" * 64
    api.app.state.service.device_bases.write()
    told = api("GET", BASES, who="operator").json()
    assert (told["base"], told["bases"][-1]["devices"]) == ("1" * 64, ["cam"])
    assert "cam" not in told["unknown"]
    api.engine.store.put_report("north", {"ready": True, "steps": 3, "last": {"loss": 0.5}}, now=9.0)
    status = api("GET", STATUS, who="operator").json()
    assert status["worker"] == {"ready": True, "seen_at": 9.0, "steps": 3, "last": {"loss": 0.5}}
    assert status["update"] == {"version": 1, "digest": DIGEST, "created": 1.0, "expires": 1e12}
    assert api("GET", "/metrics", who="chief").status_code == 200
    for cohort in api.engine.config.cohort:
        api.engine.store.put_report(cohort.name, {"ready": True}, now=time.time())
    for path in ("/livez", "/readyz", "/healthz"):
        found = api("GET", path, who=None).json()
        assert (found["status"], found["version"]) == ("ok", __version__)
    api("GET", "/openapi.json", who=None)


def full(api: Api) -> None:
    pictures = np.random.default_rng(1).integers(0, 256, (10, 150, 200, 3), dtype=np.uint8)
    limit = api.engine.store.database.max_bytes
    api.engine.store.database.max_bytes = 440_000  # as if its owner had configured less
    responses = [api("POST", SAMPLES, content=encode_samples([sample])) for sample in samples_of(pictures)]
    assert responses[-1].json()["error"]["code"] == "store_full"
    api.engine.store.database.max_bytes = 4096
    for path, content in (
        (DEVICES, b'{"devices": [{"name": "late-2"}]}'),
        (DEVICE_ACTS, b'{"type": "renew"}'),
    ):
        full_answer = api("POST", path, who="admin", content=content)
        assert full_answer.json()["error"]["code"] == "store_full"
    page, token = {"CEMA-Page": "1"}, msgspec.json.encode({"token": api.tokens["operator"]})
    assert api("POST", SESSION, who=None, content=token, headers=page).status_code == 429
    api.engine.store.database.max_bytes = limit
    responses = [api("POST", SAMPLES, content=encode_samples(make_samples(8, seed=10 + i))) for i in range(3)]
    assert responses[-1].json()["error"]["code"] == "backlog_full"


def faults(api: Api) -> None:
    api.engine.well = False
    api("GET", "/healthz", who=None)
    api("GET", "/readyz", who=None)
    with api.engine.store.database.write() as connection:
        connection.execute("ALTER TABLE evicted RENAME TO lost_ids")
    api("POST", SAMPLES, content=encode_samples(make_samples(1, seed=99)))
    with api.engine.store.database.write() as connection:
        connection.execute("ALTER TABLE cohort_acts RENAME TO lost_acts")
    assert api("POST", ACTS, who="admin", content=b'{"type": "stop"}').status_code == 503
    api("GET", ACTS, who="admin")
    with api.engine.store.database.write() as connection:
        connection.execute("ALTER TABLE true_labels RENAME COLUMN label TO lost")
        connection.execute("ALTER TABLE deletions RENAME TO lost_deletions")
        connection.execute("ALTER TABLE history RENAME TO lost_history")
        connection.execute("ALTER TABLE history_versions RENAME TO lost_versions")
    for path, content in (
        (DELETIONS, b'{"all": true}'),
        (LABELS, f'{{"labels": {{"{KNOWN.id}": 1}}}}'.encode()),
        (MEASURES, b'{"measures": {"labelled.adapted": [8, 6]}}'),
    ):
        assert api("POST", path, who="admin", content=content).status_code == 503
    for path in (DATA, SAMPLE, DELETIONS, HISTORY, SAMPLES, IMAGE):
        assert api("GET", path, who="operator").status_code == 500
    with api.engine.store.database.write() as connection:
        connection.execute("ALTER TABLE updates RENAME TO lost_updates")
        connection.execute("ALTER TABLE keys_documents RENAME COLUMN envelope TO lost")
        connection.execute("ALTER TABLE audit RENAME TO lost_audit")
    for path, content in (
        (DEVICES, b'{"devices": [{"name": "late-2"}]}'),
        (DEVICE_ACTS, b'{"type": "renew"}'),
    ):
        assert api("POST", path, who="admin", content=content).status_code == 503
    with api.engine.store.database.write() as connection:
        connection.execute("ALTER TABLE device_activity RENAME TO lost_activity")
    api("GET", DEVICES, who="admin")
    api("GET", DEVICE, who="admin")
    with api.engine.store.database.write() as connection:
        connection.execute("ALTER TABLE cohort_bases RENAME COLUMN notice TO lost")
    for path in (VERSIONS, VERSION, DOMAINS):
        assert api("GET", path, who="admin").status_code == 500
    api("GET", BASES, who="admin")
    api("GET", LATEST)
    api("GET", ARTIFACT)
    for path in (KEYS, BUNDLE, BUNDLE_FILE, STATUS):
        api("GET", path)
    api("GET", "/metrics", who="chief")
    with api.engine.store.database.write() as connection:
        connection.execute("ALTER TABLE sessions RENAME TO lost_sessions")
    page, token = {"CEMA-Page": "1"}, msgspec.json.encode({"token": api.tokens["operator"]})
    assert api("POST", SESSION, who=None, content=token, headers=page).status_code == 503
    with api.engine.store.database.write() as connection:
        connection.execute("ALTER TABLE devices RENAME TO lost_devices")
    for path in (SESSION, OVERVIEW, EVENTS):
        assert api("GET", path, who="operator").status_code == 500
    from_page = {"CEMA-Page": "1", "Host": "box"}
    for method, sent in (("POST", {"content": b'{"token": "a"}'}), ("DELETE", {})):
        found = from_page | {"Cookie": "cema_session=a"}
        assert api(method, SESSION, who=None, headers=found, **sent).status_code == 500
    for path in (SAMPLES, *ADMINISTRATORS_WRITE):
        api("POST", path, who="admin", content=b"")
    api("POST", SAMPLES, content=b"")
    api("POST", REPORTS, content=b"")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    made = Api(tmp_path_factory.mktemp("api"))
    made.publish()
    yield made
    made.engine.stop()


NAMES = st.one_of(
    st.sampled_from(["north", "south"]), st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._~-]{0,69}", fullmatch=True)
)
HEADER_TEXT = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=80).map(str.strip)
HEADERS = ("Authorization", "If-None-Match", "Content-Type", "Content-Encoding", "Range")
REQUESTS = {
    "who": st.one_of(
        st.none(),
        st.sampled_from(["device", "operator", "chief", "admin", "revoked", "expired"]),
        HEADER_TEXT,
    ),
    "cohort": NAMES,
    "digest": st.one_of(st.just(DIGEST), st.from_regex(r"[0-9a-f]{60,66}", fullmatch=True), NAMES),
    "headers": st.dictionaries(st.sampled_from(HEADERS), HEADER_TEXT, max_size=2),
}
ACT_BODIES = [
    b'{"type": "pin", "to": 1}',
    b'{"type": "stop"}',
    b'{"type": "resume"}',
    b'{"devices": [{"name": "x"}]}',
    b'{"type": "renew", "overlap": 9}',
    b'{"type": "release"}',
    b'{"measures": {"labelled.a": [1, 1]}}',
    *(b'{"all": true}', b'{"class": 2, "to": 1e9}', b'{"labels": {"a": 1}}'),
]
BODIES = st.one_of(
    st.binary(max_size=200), st.just(encode_samples(make_samples(2))), st.sampled_from(ACT_BODIES)
)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    method_path=st.sampled_from(
        [("POST", path) for path in (SAMPLES, *ADMINISTRATORS_WRITE)]
        + [("GET", path) for path in (LATEST, ARTIFACT, STATUS, VERSIONS, ACTS, DEVICES)]
        + [("GET", path) for path in (DATA, SAMPLE, DELETIONS, HISTORY, SESSION, OVERVIEW, "/metrics")]
        + [("GET", path) for path in (SAMPLES, IMAGE, VERSION, DOMAINS, DEVICE)]
    ),
    request=st.fixed_dictionaries(REQUESTS),
    content=BODIES,
)
def test_any_request_gets_a_declared_response(
    shared: Api, method_path: tuple[str, str], request: dict[str, Any], content: bytes
) -> None:
    response = shared(*method_path, **request, content=content if method_path[0] == "POST" else None)
    assert response.status_code < 500, response.text
