from __future__ import annotations

import hashlib
import json
import math
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import msgspec
import numpy as np
import pytest
from cloud_client import Cloud, auth, refused
from cloud_support import StillEngine, make_samples, samples_of, serving, write_config
from openapi_spec_validator import validate

from cema.cloud.config import CloudConfig
from cema.cloud.store.sqlite_database import PAGE
from cema.cloud.store.sqlite_samples import ROW_BYTES
from cema.formats.sample import CONTENT_TYPE, Sample, encode_samples


def test_samples_are_stored_once_and_answered_in_order(cloud: Cloud) -> None:
    samples = make_samples(4)
    assert cloud.send(samples[:3]) == [(s.id, "stored") for s in samples[:3]]
    assert [v for _, v in cloud.send(samples[1:])] == ["duplicate", "duplicate", "stored"]
    assert [s.id for s in cloud.store.fresh("north", after=0, limit=9)] == [s.id for s in samples]
    assert cloud.send([]) == []


def test_a_bad_sample_gets_its_own_verdict_and_the_rest_is_stored(cloud: Cloud) -> None:
    good = make_samples(3)
    tampered = msgspec.structs.replace(good[0], image=good[0].image[:-1] + b"!")
    garbage = b"no image at all"
    unreadable = msgspec.structs.replace(good[0], image=garbage, id=hashlib.sha256(garbage).hexdigest())
    wild = msgspec.structs.replace(good[0], entropy=math.inf)
    strange = msgspec.structs.replace(good[0], id="x")
    response = cloud.post(encode_samples([tampered, good[1], unreadable, wild, strange, good[2]]))
    verdicts = response.json()["verdicts"]
    assert [v["verdict"] for v in verdicts] == [
        "rejected",
        "stored",
        "rejected",
        "rejected",
        "rejected",
        "stored",
    ]
    assert [v["reason"] is None for v in verdicts] == [v["verdict"] == "stored" for v in verdicts]
    assert cloud.store.counters("north")["samples.rejected.format"] == 3
    assert cloud.store.counters("north")["samples.rejected.image"] == 1
    assert cloud.store.backlog("north").samples == 2


@pytest.mark.parametrize("body", [b"", b"garbage", b"\xc1", b"\x81\xa6format\xa1x", b"\x91" * 5000])
def test_a_malformed_frame_is_400(cloud: Cloud, body: bytes) -> None:
    refused(cloud.post(body), 400, "malformed")


def test_everything_but_health_wants_a_token(cloud: Cloud) -> None:
    ours = [
        f"/v1/cohorts/north/{p}"
        for p in ("status", "updates/latest", "keys", "bundle", "artifacts/" + "0" * 64)
    ]
    for path in ("/metrics", *ours):
        for header in (b"", b"Bearer", b"Bearer wrong", b"Basic abc", b"Bearer \xff"):
            response = cloud.http.get(path, headers={b"Authorization": header} if header else {})
            refused(response, 401, "unauthorized")
            assert response.headers["www-authenticate"] == "Bearer"


def test_uploads_want_a_token_before_they_want_anything_else(cloud: Cloud) -> None:
    refused(
        cloud.post(b"x" * 200_000, Authorization="Bearer wrong", Content_Type="text/plain"),
        401,
        "unauthorized",
    )


def test_a_revoked_token_is_403(cloud: Cloud) -> None:
    cloud.engine.devices.revoke("cam")
    refused(cloud.post(encode_samples(make_samples(1))), 403, "revoked")
    refused(cloud.get("/v1/cohorts/north/updates/latest"), 403, "revoked")


def test_a_device_speaks_for_its_own_cohort_only(cloud: Cloud) -> None:
    refused(cloud.post(b"", cohort="south"), 403, "wrong_cohort")
    refused(cloud.get("/v1/cohorts/south/updates/latest"), 403, "wrong_cohort")
    refused(cloud.get("/v1/cohorts/south/status", token=cloud.northern_operator), 403, "wrong_cohort")
    assert cloud.get("/v1/cohorts/south/status", token=cloud.operator).status_code == 200


def test_an_unknown_cohort_is_404(cloud: Cloud) -> None:
    refused(cloud.post(b"", cohort="west"), 404, "unknown_cohort")
    refused(cloud.get("/v1/cohorts/west/updates/latest"), 404, "unknown_cohort")


def test_operators_read_and_do_not_upload(cloud: Cloud) -> None:
    refused(cloud.post(b"", Authorization=f"Bearer {cloud.operator}"), 403, "not_a_device")
    refused(cloud.get("/metrics"), 403, "not_an_operator")
    refused(cloud.get("/metrics", token=cloud.northern_operator), 403, "not_an_operator")


@pytest.mark.parametrize("kind", ["application/json", "text/plain; charset=utf-8", ""])
def test_another_media_type_is_415(cloud: Cloud, kind: str) -> None:
    refused(cloud.post(b"{}", Content_Type=kind), 415, "unsupported_media_type")


def test_a_compressed_body_is_415(cloud: Cloud) -> None:
    refused(cloud.post(b"", Content_Encoding="gzip"), 415, "unsupported_media_type")


def test_a_large_body_is_413_announced_or_not(cloud: Cloud) -> None:
    refused(cloud.post(b"x" * 100_001), 413, "too_large")

    def chunks() -> Iterator[bytes]:
        for _ in range(50):
            yield b"x" * 50_000

    response = cloud.http.post(
        "/v1/cohorts/north/samples",
        content=chunks(),
        headers={**auth(cloud.token), "Content-Type": CONTENT_TYPE},
    )
    refused(response, 413, "too_large")


def test_a_body_that_is_absurdly_large_is_answered_without_being_read(cloud: Cloud) -> None:
    host, port = cloud.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as link:
        link.sendall(
            f"POST /v1/cohorts/north/samples HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {cloud.token}\r\n"
            f"Content-Type: {CONTENT_TYPE}\r\nContent-Length: {10**12}\r\n\r\n".encode()
        )
        assert link.recv(100).startswith(b"HTTP/1.1 413")


def test_too_many_samples_are_413(cloud: Cloud) -> None:
    refused(cloud.post(encode_samples(make_samples(9))), 413, "too_many_samples")


def test_a_full_backlog_is_429_with_retry_after_and_nothing_is_stored(cloud: Cloud) -> None:
    samples = make_samples(24)
    for i in (0, 8):
        cloud.send(samples[i : i + 8])
    response = cloud.post(encode_samples(samples[16:]))
    refused(response, 429, "backlog_full")
    assert response.headers["retry-after"] == "7"
    assert cloud.store.backlog("north").samples == 16


def test_a_full_store_is_429_with_retry_after(cloud: Cloud) -> None:
    cloud.store.database.max_bytes = 440_000  # as if its owner had configured less
    rng = np.random.default_rng(0)
    response = None
    for _ in range(10):
        image = rng.integers(0, 256, (150, 200, 3), dtype=np.uint8)
        from cema.formats.image import CodecConfig, encode_image
        from cema.formats.sample import sample_id

        encoded = encode_image(image, CodecConfig(codec="raw"))
        sample = Sample(
            id=sample_id(encoded), image=encoded, entropy=0.1, label=0, version=0, captured_at=0.0
        )
        response = cloud.post(encode_samples([sample]))
        if response.status_code != 200:
            break
    assert response is not None
    refused(response, 429, "store_full")
    assert response.headers["retry-after"] == "7"


def test_what_could_never_fit_is_413_and_not_429_for_ever(cloud: Cloud) -> None:
    cloud.store.database.max_bytes = 394_000  # as if its owner had configured less
    pieces = samples_of(np.random.default_rng(0).integers(0, 256, (2, 82, 200, 3), dtype=np.uint8))
    error = refused(cloud.post(encode_samples(pieces[:2])), 413, "too_large")
    assert "empty store" in error["message"]
    assert cloud.store.backlog("north").samples == 0
    assert cloud.send(pieces[:1]) == [(pieces[0].id, "stored")]


def test_the_largest_request_fits_an_empty_store(tmp_path: Path) -> None:
    most = 2**22 // 2 // (ROW_BYTES + PAGE)
    extra = f"[limits]\nstore_bytes = {2**22}\nbody_bytes = {2**20}\nbatch_samples = {most}\n"
    engine = StillEngine(CloudConfig.load(write_config(tmp_path, extra=extra)))
    # The worst that a body can hold: each image begins one more page.
    size = 2**20 // most - 300
    samples = []
    for i in range(most):
        image = np.random.default_rng(i).bytes(size)
        digest = hashlib.sha256(image).hexdigest()
        samples.append(Sample(id=digest, image=image, entropy=0.1, label=0, version=0, captured_at=0.0))
    assert len(encode_samples(samples)) <= 2**20
    verdicts = engine.store.put("north", samples, device="d", now=0.0, max_backlog=most)
    assert {v.verdict for v in verdicts} == {"stored"}
    engine.stop()


def test_there_is_no_update_before_the_first(cloud: Cloud) -> None:
    response = cloud.get("/v1/cohorts/north/updates/latest")
    assert (response.status_code, response.content) == (204, b"")
    assert response.headers["cache-control"] == "no-cache"


def test_the_latest_update_is_revalidated_by_its_entity_tag(cloud: Cloud) -> None:
    update = cloud.publish(1, b"payload")
    response = cloud.get("/v1/cohorts/north/updates/latest")
    etag = f'"{update.digest}-1"'
    assert (response.status_code, response.content) == (200, update.envelope)
    assert response.headers["content-type"] == "application/json"
    assert response.headers["etag"] == etag
    assert response.headers["cache-control"] == "no-cache"
    for known in (etag, f"W/{etag}", f'"other", {etag}', "*"):
        again = cloud.get("/v1/cohorts/north/updates/latest", headers={"If-None-Match": known})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)
    # The same payload as a new version is a new envelope.
    cloud.publish(2, b"payload")
    newer = cloud.get("/v1/cohorts/north/updates/latest", headers={"If-None-Match": etag})
    assert (newer.status_code, newer.headers["etag"]) == (200, f'"{update.digest}-2"')


def test_keys_documents_are_served_as_they_were_signed(cloud: Cloud) -> None:
    none = cloud.get("/v1/cohorts/north/keys")
    assert (none.status_code, none.content, none.headers["cache-control"]) == (204, b"", "no-cache")
    first, second = b'{"manifest":"YQ==","signatures":[]}', b'{"manifest":"Yg==","signatures":[]}'
    cloud.store.put_keys_document("north", 1, first)
    one = cloud.get("/v1/cohorts/north/keys")
    assert (one.status_code, one.content) == (200, b'{"documents":[' + first + b"]}")
    assert one.headers["content-type"] == "application/json"
    cloud.store.put_keys_document("north", 2, second)
    known = {"If-None-Match": one.headers["etag"]}
    both = cloud.get("/v1/cohorts/north/keys", headers=known)
    assert both.content == b'{"documents":[' + first + b"," + second + b"]}"
    known = {"If-None-Match": both.headers["etag"]}
    assert cloud.get("/v1/cohorts/north/keys", headers=known).status_code == 304


def test_an_unchanged_poll_reads_the_token_the_bases_and_the_tag(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    update = cloud.publish(1, b"payload")
    statements: list[str] = []
    database = cloud.store.database
    for connection in (database._writer, database._peeker, *database._idle):
        connection.set_trace_callback(statements.append)
    monkeypatch.setattr(database, "_connect", None)  # whoever wants another connection fails
    known = {"If-None-Match": f'"{update.digest}-1"'}
    for _ in range(3):
        statements.clear()
        assert cloud.get("/v1/cohorts/north/updates/latest", headers=known).status_code == 304
        tables = [statement.partition(" FROM ")[2].partition(" ")[0] for statement in statements]
        assert tables == ["devices", "cohort_bases", "device_pins", "updates"]
        assert statements[3].startswith("SELECT version, digest FROM")


class Plain:
    """A store of somebody else, with the members of the protocol alone."""

    def __init__(self, store: object) -> None:
        self._store = store

    def __getattr__(self, name: str) -> object:
        if name in ("instant", "latest_tag"):
            raise AttributeError(name)
        return getattr(self._store, name)


def test_a_store_without_tags_is_polled_all_the_same(tmp_path: Path) -> None:
    engine = StillEngine(CloudConfig.load(write_config(tmp_path)))
    engine.store = Plain(engine.store)  # type: ignore[assignment]
    with serving(engine) as url:
        cloud = Cloud.__new__(Cloud)
        cloud.store, cloud.http = engine.store, httpx2.Client(base_url=url)
        cloud.token = engine.devices.add("cam", cohort="north")
        assert cloud.get("/v1/cohorts/north/updates/latest").status_code == 204
        etag = f'"{cloud.publish(1, b"payload").digest}-1"'
        assert cloud.get("/v1/cohorts/north/updates/latest").headers["etag"] == etag
        known = {"If-None-Match": etag}
        assert cloud.get("/v1/cohorts/north/updates/latest", headers=known).status_code == 304
        assert cloud.get("/v1/cohorts/north/updates/latest", token="wrong").status_code == 401
        cloud.http.close()


def test_artifacts_are_immutable(cloud: Cloud) -> None:
    update = cloud.publish(1, b"payload")
    path = f"/v1/cohorts/north/artifacts/{update.digest}"
    response = cloud.get(path)
    assert (response.status_code, response.content) == (200, b"payload")
    assert response.headers["cache-control"] == "public, max-age=31536000, immutable"
    assert response.headers["content-type"] == "application/octet-stream"
    again = cloud.get(path, headers={"If-None-Match": response.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    refused(cloud.get("/v1/cohorts/north/artifacts/" + "0" * 64), 404, "unknown_artifact")
    refused(cloud.get("/v1/cohorts/north/artifacts/short"), 404, "unknown_artifact")
    # Another cohort's artifact is as good as none.
    south = cloud.get(f"/v1/cohorts/south/artifacts/{update.digest}", token=cloud.southern)
    refused(south, 404, "unknown_artifact")


def test_status_says_where_the_cohort_stands(cloud: Cloud) -> None:
    status = cloud.get("/v1/cohorts/north/status").json()
    assert status["version"] == 0
    assert status["update"] is None
    assert status["worker"] == {"ready": False}
    cloud.send(make_samples(3))
    update = cloud.publish(1, b"payload")
    cloud.ready(steps=4)
    status = cloud.get("/v1/cohorts/north/status").json()
    assert (status["version"], status["update"]["digest"]) == (1, update.digest)
    assert (status["samples"], status["backlog"], status["cursor"]) == (3, 3, 0)
    assert status["counts"]["samples.stored"] == 3
    assert status["worker"].pop("seen_at") == pytest.approx(time.time(), abs=60)
    assert status["worker"] == {"ready": True, "steps": 4}
    assert status["healthy"] is True


@pytest.mark.parametrize("path", ["/readyz", "/healthz"])
def test_health_needs_no_token(cloud: Cloud, path: str) -> None:
    assert (
        "cohort north: its worker is not ready" in refused(cloud.http.get(path), 503, "unhealthy")["message"]
    )
    cloud.ready()
    response = cloud.http.get(path)
    assert (response.status_code, response.json()["status"]) == (200, "ok")
    names = {check["name"] for check in response.json()["checks"] if check["ok"]}
    assert names == {"worker", "disk", "store", "clock", "cohort north", "cohort south"}
    cloud.engine.well = False
    assert (
        refused(cloud.http.get(path), 503, "unhealthy")["message"]
        == "worker: the worker process is not running"
    )
    assert cloud.http.get("/livez").json()["status"] == "ok"
    assert cloud.send(make_samples(1))[0][1] == "stored"


def test_unknown_addresses_and_methods_are_errors_of_the_same_form(cloud: Cloud) -> None:
    refused(cloud.get("/no/such/place"), 404, "not_found")
    response = cloud.get("/v1/cohorts/north/reports")
    refused(response, 405, "method_not_allowed")
    assert response.headers["allow"] == "POST"


def test_a_store_that_cannot_be_written_is_503_with_retry_after(cloud: Cloud) -> None:
    with cloud.store.database.write() as connection:
        connection.execute("ALTER TABLE evicted RENAME TO lost")
    response = cloud.post(encode_samples(make_samples(1)))
    refused(response, 503, "store_unavailable")
    assert response.headers["retry-after"] == "7"


def test_a_fault_of_our_own_is_a_500_that_tells_nothing(cloud: Cloud) -> None:
    with cloud.store.database.write() as connection:
        connection.execute("ALTER TABLE updates RENAME TO lost")
    response = cloud.get("/v1/cohorts/north/updates/latest")
    error = refused(response, 500, "internal")
    assert "updates" not in json.dumps(error)


def test_the_api_describes_itself(cloud: Cloud) -> None:
    response = cloud.http.get("/openapi.json")
    document = response.json()
    validate(document)
    assert response.headers["cache-control"] == "no-store"
    assert document["info"]["title"] == "CEMA cloud"
    operations = {
        operation["operationId"]: operation
        for path in document["paths"].values()
        for operation in path.values()
    }
    assert operations.keys() == {
        "upload_samples",
        "keys_documents",
        "bundle_notice",
        "bundle_file",
        "bases",
        "latest_update",
        "artifact",
        "cohort_status",
        "history",
        "show_device",
        "sample_image",
        "show_version",
        "domains",
        "list_samples",
        "add_measures",
        "sign_in",
        "session",
        "sign_out",
        "overview",
        "follow",
        "health",
        "live",
        "ready",
        "metrics",
        "openapi_document",
        "versions",
        "acts",
        "act",
        "report",
        "list_devices",
        "add_devices",
        "act_on_device",
        "data_summary",
        "sample_facts",
        "deletions",
        "delete_samples",
        "label_samples",
    }
    public = {name for name, operation in operations.items() if "security" not in operation}
    assert public == {"health", "live", "ready", "openapi_document", "sign_in", "sign_out"}
    assert all(operation["summary"] and operation["tags"] for operation in operations.values())
