"""``docs/protocol.md`` against the code: its examples and tables are what the code makes and accepts."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import inspect
import io
import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import numpy as np
import pytest
import safetensors.numpy
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from PIL import Image

from cema.cloud.config import CloudConfig, LimitsConfig
from cema.cloud.http import app, body, connections, service
from cema.cloud.http import overview as http_overview
from cema.cloud.http.errors import ERRORS
from cema.cloud.store import base as store
from cema.cloud.store import sqlite_space as space
from cema.cloud.store.base import PublishedUpdate
from cema.cloud.store.bases import Migration, bases_of
from cema.edge import uploader
from cema.edge.config import UpdateConfig, UploadConfig
from cema.edge.retry import Backoff
from cema.errors import REJECTION_REASONS, LogitsError, UpdateRejected
from cema.formats import envelope as envelopes_module
from cema.formats import image_check, image_header
from cema.formats.bundle import Bundle, BundleStatistics, check_golden, write_bundle
from cema.formats.bundle_manifest import BundleManifest
from cema.formats.bundle_notice import BundleNotice, sign_notice, verify_notice
from cema.formats.draw import HEADER, MAX_BYTES, SMALLEST_SHARE, Draw, decode_draws, encode_draws
from cema.formats.image import decode_image
from cema.formats.keyring import Keyring, KeysDocument, sign_keys
from cema.formats.keys import key_id
from cema.formats.payload import decode_payload, encode_payload
from cema.formats.report import decode_report
from cema.formats.sample import CONTENT_TYPE, Sample, check_sample, decode_samples, encode_samples
from cema.formats.update import UpdateManifest, sign_update, verify_payload, verify_update
from cema.ondevice.folding import StatisticsLayer

PAGE = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text(encoding="utf-8")
NOW = 1_700_000_100.0  # between the example's `created` and `expires`


def block(name: str) -> str:
    """Return the fenced block that is marked ``cema:name``."""
    (found,) = re.findall(rf"^```\w+ cema:{name}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    return str(found)


def joined(name: str) -> str:
    return "".join(block(name).split("\n"))


def binary(name: str) -> bytes:
    return bytes.fromhex(joined(name))


def table(name: str) -> list[list[str]]:
    """Return the rows of the table after the comment ``cema:name``, without code marks."""
    (found,) = re.findall(rf"^<!-- cema:{name} -->\n\n((?:\|.*\n)+)", PAGE, re.MULTILINE)
    lines = [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in found.splitlines()]
    return lines[2:]


def private_key() -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(binary("private-key"))


def payload_format(payload: bytes) -> str:
    """Return what the metadata say, read without the code that is tested."""
    header = json.loads(payload[8 : 8 + int.from_bytes(payload[:8], "little")])
    return str(header["__metadata__"]["format"])


def example_sample() -> Sample:
    fields = json.loads(block("sample"))
    return Sample(**fields | {"image": bytes.fromhex(fields["image"])})


def manifest() -> UpdateManifest:
    return msgspec.json.decode(block("manifest"), type=UpdateManifest)


class PlainEngine:
    """A store and its devices; nothing adapts."""

    def __init__(self, config: CloudConfig) -> None:
        self.config = config
        self.store = config.open_store()
        self.store.open_cohort("north", base=manifest().base)
        self.store.put_report("north", {"ready": True}, now=time.time())
        self.devices = self.store.devices(["north"])

    def start(self) -> None:
        """Nothing to start."""

    def stop(self) -> None:
        self.store.close()

    def healthy(self) -> bool:
        return True


class Site:
    """The cloud's application, called in this process."""

    def __init__(self, folder: Path) -> None:
        path = folder / "cloud.toml"
        path.write_text(
            'data = "data"\nsigning_key = "key"\n[[cohort]]\nname = "north"\nbundle = "bundle"\n'
            'model = "edge"\nfoundation = "foundation"\n'
        )
        self.engine = PlainEngine(CloudConfig.load(path))
        self.app = app.create_app(self.engine)
        self.token = self.engine.devices.add("camera", cohort="north")

    def __call__(self, method: str, path: str, *, token: str | None = "", **request: Any) -> httpx2.Response:
        headers = request.pop("headers", {})
        if token is not None:
            headers = {"Authorization": f"Bearer {token or self.token}", **headers}

        async def call() -> httpx2.Response:
            transport = httpx2.ASGITransport(app=self.app)
            async with httpx2.AsyncClient(transport=transport, base_url="http://cloud") as client:
                return await client.request(method, path, headers=headers, **request)

        return asyncio.run(call())

    def publish(self) -> None:
        """Offer the page's update."""
        payload, example = binary("payload"), manifest()
        published = PublishedUpdate(
            1, example.payload, joined("envelope").encode(), payload, example.created, example.expires
        )
        epoch = self.engine.store.claim("north").epoch
        self.engine.store.commit_step("north", 0, b"", published, epoch=epoch, now=NOW)

    def migrate(self) -> None:
        """Offer a bundle one of whose files has the digest of the page's payload."""
        notice = msgspec.json.decode(block("notice"), type=BundleNotice)
        files = [msgspec.structs.replace(notice.files[0], sha256=manifest().payload), *notice.files[1:]]
        signed = sign_notice(
            msgspec.structs.replace(notice, base="1" * 64, files=tuple(files)), private_key()
        )
        change = Migration(old=manifest().base, new="1" * 64, serial=1, notice=signed)
        bases_of(self.engine.store).migrate("north", change, actor="ann", now=NOW)
        folder = Path(self.engine.config.data) / "bundles"
        folder.mkdir()
        (folder / manifest().payload).write_bytes(b"golden")


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    made.engine.stop()


def test_lines_are_short() -> None:
    assert [line for line in PAGE.splitlines() if len(line) > 125 or line != line.rstrip()] == []


# --- samples


def test_the_frame_is_what_the_code_encodes_and_decodes() -> None:
    sample = example_sample()
    check_sample(sample)
    assert decode_image(sample.image).tolist() == [[[1, 2, 3]]]
    assert encode_samples([sample]) == binary("frame")
    assert decode_samples(binary("frame")) == [sample]


def test_the_media_type_and_the_formats_are_named() -> None:
    rows = re.findall(r"^\| \w[^|]* \| ([^|]+) \| `(cema\.[^`]+)` \|$", PAGE, re.MULTILINE)
    assert rows[0][0] == f"`{CONTENT_TYPE}`"
    frame = msgspec.msgpack.decode(binary("frame"))
    bundle = json.loads(block("bundle"))
    payloads = [payload_format(binary(name)) for name in ("payload", "payload-unfolded")]
    keys = json.loads(block("keys"))["format"]
    report = json.loads(block("report"))["format"]
    notice = json.loads(block("notice"))["format"]
    formats = [frame["format"], manifest().format, keys, report, *payloads, bundle["format"], notice]
    assert [name for _, name in rows] == formats
    assert f"Content-Type: {CONTENT_TYPE}" in PAGE


def test_verdicts_are_answered_as_shown(site: Site) -> None:
    send: dict[str, Any] = {"content": binary("frame"), "headers": {"Content-Type": CONTENT_TYPE}}
    answer = site("POST", "/v1/cohorts/north/samples", **send)
    assert (answer.status_code, answer.text) == (200, block("verdicts").strip())
    assert answer.headers["cache-control"] == "no-store"
    (again,) = site("POST", "/v1/cohorts/north/samples", **send).json()["verdicts"]
    assert (again["verdict"], again["reason"]) == ("duplicate", None)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda frame: frame | {"format": "cema.samples/2"},
        lambda frame: frame | {"more": 1},
        lambda frame: {"samples": frame["samples"]},
        lambda frame: frame | {"samples": [frame["samples"][0] | {"more": 1}]},
        lambda frame: frame | {"samples": [{k: v for k, v in frame["samples"][0].items() if k != "label"}]},
        lambda frame: frame | {"samples": [frame["samples"][0] | {"label": 3.0}]},
        lambda frame: frame | {"samples": [frame["samples"][0] | {"image": "text"}]},
    ],
)
def test_other_frames_are_refused_whole(
    site: Site, spoil: Callable[[dict[str, Any]], dict[str, Any]]
) -> None:
    body = msgspec.msgpack.encode(spoil(msgspec.msgpack.decode(binary("frame"))))
    for content in (body, binary("frame") + b"\0"):
        headers = {"Content-Type": CONTENT_TYPE}
        answer = site("POST", "/v1/cohorts/north/samples", content=content, headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "malformed")


def test_other_images_are_rejected_alone(site: Site) -> None:
    pixels = np.zeros((4, 4, 3), np.uint8)
    pictures = [
        Image.fromarray(pixels),
        Image.fromarray(pixels).convert("RGBA"),
        Image.fromarray(pixels).convert("P"),
        Image.fromarray(np.full((4, 4), 40_000, np.uint16)),
    ]
    frame = []
    for picture in pictures:
        buffer = io.BytesIO()
        picture.save(buffer, format="PNG")
        frame.append(
            msgspec.structs.replace(
                example_sample(), image=buffer.getvalue(), id=hashlib.sha256(buffer.getvalue()).hexdigest()
            )
        )
    headers = {"Content-Type": CONTENT_TYPE}
    answer = site("POST", "/v1/cohorts/north/samples", content=encode_samples(frame), headers=headers)
    assert [v["verdict"] for v in answer.json()["verdicts"]] == ["stored"] + ["rejected"] * 3


def test_the_header_for_what_was_drawn_is_read_as_the_page_says(site: Site) -> None:
    name, _, value = block("drawn").strip().partition(": ")
    draws = decode_draws(value, samples=6)
    half, whole = Draw(0.005, False), Draw(0.01, False)
    assert (name, draws) == (HEADER, {0: Draw(0.01, True), 3: whole, 4: half, 5: whole})
    assert encode_draws(draws) == json.dumps(
        [{"share": 0.01, "selected": [0], "only": [3, 5]}, {"share": 0.005, "selected": [], "only": [4]}],
        separators=(",", ":"),
    )
    for sent, status in ((value, 400), ('[{"share":0.01,"only":[0]}]', 200)):  # the frame has one sample
        headers = {"Content-Type": CONTENT_TYPE, HEADER: sent}
        answer = site("POST", "/v1/cohorts/north/samples", content=binary("frame"), headers=headers)
        assert answer.status_code == status
    counts = site("GET", "/v1/cohorts/north/status").json()["counts"]
    assert counts == {"samples.stored": 1, "bytes.stored": len(example_sample().image), "drawn.stored": 1}
    assert all(f"`{counted}`" in PAGE for counted in counts)
    assert f"at most {MAX_BYTES:,} bytes" in PAGE
    assert f"from {SMALLEST_SHARE:.6f} to\n1" in PAGE


def test_key_order_and_short_numbers_do_not_matter() -> None:
    frame = msgspec.msgpack.decode(binary("frame"))
    turned = dict(reversed(frame["samples"][0].items())) | {"entropy": 1}
    (sample,) = decode_samples(msgspec.msgpack.encode({"samples": [turned], "format": frame["format"]}))
    assert sample == msgspec.structs.replace(example_sample(), entropy=1.0)


# --- HTTP


def test_the_endpoints_are_those_of_the_application(site: Site) -> None:
    paths = site.app.openapi()["paths"]
    declared = [(method.upper(), path) for path, operations in paths.items() for method in operations]
    assert [(row[0], row[1]) for row in table("endpoints")] == declared


def test_who_may_do_what_is_as_the_table_says(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.publish()
    site.migrate()
    add = site.engine.devices.add
    tokens = {
        "nobody": None,
        "device": site.token,
        "operator": add("ops-north", cohort="north", role="operator"),
        "chief": add("ops", cohort=None, role="operator"),
        "admin": add("boss", cohort=None, role="admin"),
    }
    allowed = {
        "device of the cohort": {"device"},
        "device, operator or admin of the cohort": {"device", "operator", "chief", "admin"},
        "operator or admin of the cohort": {"operator", "chief", "admin"},
        "admin of the cohort": {"admin"},
        "operator or admin of all cohorts": {"chief", "admin"},
        "operator or admin": {"operator", "chief", "admin"},
        "anybody": set(tokens),
        "anybody with the token of an operator or admin": set(tokens),  # it is in the body
    }
    # Events have no end, but for those who may not have them any more.
    monkeypatch.setattr(http_overview, "QUIET_SECONDS", 0.01)
    monkeypatch.setattr(http_overview, "_still_may", lambda *_: False)
    site(
        "POST",
        "/v1/cohorts/north/samples",
        content=binary("frame"),
        headers={"Content-Type": CONTENT_TYPE},
    )
    device_act = b'{"type": "expire", "at": null}'
    bodies = {
        "samples": binary("frame"),
        "reports": block("report").encode(),
        "devices": b'{"devices": [{"name": "new"}]}',
        "acts": b'{"type": "pause"}',
        "deletions": b'{"device": "another"}',
        "labels": b'{"labels": {}}',
        "measures": b'{"measures": {"labelled.adapted": [1, 1]}}',
        "session": json.dumps({"token": tokens["chief"]}).encode(),
    }
    for method, path, who, success in table("endpoints"):
        names = {"digest": manifest().payload, "id": example_sample().id, "name": "ops-north", "version": "1"}
        address = path.format(cohort="north", **names)
        for name, token in tokens.items():
            request: dict[str, Any] = {}
            if method == "POST":
                request["content"] = device_act if "{name}" in path else bodies[path.rpartition("/")[2]]
                request["headers"] = {"Content-Type": CONTENT_TYPE, "CEMA-Page": "1"}
            status = site(method, address, token=token, **request).status_code
            if name in allowed[who]:
                assert str(status) in success, (name, path)
            else:
                assert status == (401 if name == "nobody" else 403), (name, path)


def test_a_report_looks_as_shown() -> None:
    report = decode_report(block("report").encode())
    assert msgspec.to_builtins(report) == json.loads(block("report"))


def test_an_error_looks_as_shown(site: Site) -> None:
    for method, path in (("GET", "/metrics"), ("POST", "/v1/cohorts/north/samples")):
        answer = site(method, path, token=None)
        assert (answer.status_code, answer.json()) == (401, json.loads(block("error")))
        assert answer.headers["www-authenticate"] == "Bearer"
        assert answer.headers["cache-control"] == "no-store"


def test_the_error_codes_are_those_in_the_code() -> None:
    found = [(str(status), code) for code, (status, _) in ERRORS.items()]
    listed = [(row[0], row[1]) for row in table("errors")]
    assert sorted(listed) == sorted(found)
    raised = set()
    for path in Path(app.__file__).parent.glob("*.py"):
        raised |= set(re.findall(r'\b(?:ApiError|later)\(\s*"(\w+)"', path.read_text(encoding="utf-8")))
    assert raised == ERRORS.keys() | {"http_error"}
    assert "the code `http_error`" in PAGE


def test_other_methods_and_paths_are_answered_as_said(site: Site) -> None:
    for method in ("HEAD", "OPTIONS", "PUT"):
        answer = site(method, "/v1/cohorts/north/updates/latest")
        assert (answer.status_code, answer.headers["allow"]) == (405, "GET")
    assert site("GET", "/healthz/").status_code == 404
    assert site("GET", "/elsewhere").json()["error"]["code"] == "not_found"


def test_updates_are_served_and_cached_as_said(site: Site) -> None:
    latest = "/v1/cohorts/north/updates/latest"
    nothing = site("GET", latest)
    assert (nothing.status_code, nothing.content, nothing.headers["cache-control"]) == (204, b"", "no-cache")
    site.publish()
    answer = site("GET", latest)
    tag = f'"{manifest().payload}-1"'
    assert answer.content == joined("envelope").encode()
    assert (answer.headers["etag"], answer.headers["cache-control"]) == (tag, "no-cache")
    assert answer.headers["content-type"] == "application/json"
    for known in (tag, f"W/{tag}", f'"other", {tag}', "*"):
        same = site("GET", latest, headers={"If-None-Match": known})
        assert (same.status_code, same.content, same.headers["etag"]) == (304, b"", tag)
    artifact = site(
        "GET", f"/v1/cohorts/north/artifacts/{manifest().payload}", headers={"Range": "bytes=0-1"}
    )
    assert (artifact.status_code, artifact.content) == (200, binary("payload"))
    assert artifact.headers["etag"] == f'"{manifest().payload}"'
    assert f"Cache-Control: {artifact.headers['cache-control']}" in PAGE


def test_the_status_has_the_members_that_are_named(site: Site) -> None:
    site.publish()
    status = site("GET", "/v1/cohorts/north/status").json()
    (paragraph,) = re.findall(r"^`status`: .*?(?=\n\n)", PAGE, re.DOTALL | re.MULTILINE)
    named = set(re.findall(r"`([a-z_]+)`", paragraph))
    assert set(status) | set(status["update"]) <= named
    assert isinstance(status["worker"]["ready"], bool)


def test_the_status_counts_what_is_named(site: Site) -> None:
    for _ in range(2):
        site(
            "POST",
            "/v1/cohorts/north/samples",
            content=binary("frame"),
            headers={"Content-Type": CONTENT_TYPE},
        )
    counts = site("GET", "/v1/cohorts/north/status").json()["counts"]
    size = len(example_sample().image)
    named = {"samples.stored": 1, "samples.duplicate": 1, "bytes.stored": size, "bytes.duplicate": size}
    assert counts == named
    assert all(f"`{name}`" in PAGE for name in named)


def test_the_numbers_are_the_code_s() -> None:
    upload, limits, backoff = UploadConfig(), LimitsConfig(), Backoff()
    assert f"After {uploader._PATIENCE} batches in a row" in PAGE
    assert f"at most {uploader._LONGEST_PATIENCE}." in PAGE
    known = {
        "edge.batch_samples": upload.batch_samples,
        "edge.batch_bytes": upload.batch_bytes,
        "edge.linger_seconds": upload.linger_seconds,
        "edge.timeout_seconds": upload.timeout_seconds,
        "edge.poll_seconds": UpdateConfig().poll_seconds,
        "edge.report_seconds": UpdateConfig().report_seconds,
        "backoff.base": backoff.base,
        "backoff.cap": backoff.cap,
        "backoff.slow": backoff.slow,
        "backoff.soon": backoff.soon,
        "backoff.longest": backoff.longest,
        "cloud.port": inspect.signature(CloudConfig).parameters["port"].default,
        "cloud.body_bytes": limits.body_bytes,
        "cloud.batch_samples": limits.batch_samples,
        "cloud.backlog_samples": limits.backlog_samples,
        "cloud.retry_after_seconds": limits.retry_after_seconds,
        "cloud.uploads_at_once": service.UPLOADS_AT_ONCE,
        "cloud.storing_seconds": service.STORING_SECONDS,
        "cloud.uploads_of_one": service.UPLOADS_OF_ONE,
        "cloud.body_seconds": body.BODY_SECONDS,
        "cloud.first_seconds": body.FIRST_SECONDS,
        "cloud.least_rate": body.LEAST_RATE,
        "cloud.header_seconds": connections.HEADER_SECONDS,
        "cloud.image_pixels": limits.image_pixels,
        "cloud.image_aspect": limits.image_aspect,
        "cloud.image_scans": image_check.MOST_SCANS,
        "cloud.drain_bytes": body.DRAIN_BYTES,
        "cloud.updates_kept": store.UPDATES_KEPT,
        "cloud.evicted_ids": space.EVICTED_IDS,
        "image.max_pixels": image_header.MAX_PIXELS,
        "envelope.max_bytes": envelopes_module._MAX_ENVELOPE_BYTES,
    }
    assert {row[0]: float(row[1]) for row in table("numbers")} == known


# --- updates


def test_the_payload_holds_what_the_page_says() -> None:
    norm_state = {
        "bn.scale": np.array([1.5, 0.75], np.float32),
        "bn.shift": np.array([-0.25, 0.125], np.float32),
    }
    golden = np.array([[2.0, -1.0]], np.float32)
    assert encode_payload(norm_state, golden) == binary("payload")
    decoded = decode_payload(binary("payload"))
    assert {key: value.tolist() for key, value in decoded.norm_state.items()} == {
        key: value.tolist() for key, value in norm_state.items()
    }
    assert decoded.golden_logits.tolist() == golden.tolist()


def test_the_unfolded_payload_holds_what_the_page_says() -> None:
    affine = {"bn.scale": np.array([3, 0.5], np.float32), "bn.shift": np.array([-1, 0.25], np.float32)}
    golden, statistics = np.array([[2.0, -1.0]], np.float32), np.array([[0.5, -1], [2, 0.5]])
    payload = encode_payload(affine, golden, unfolded=True, statistics=statistics)
    assert payload == binary("payload-unfolded")
    assert f"A payload of {len(payload)} bytes with `bn.scale` = (3, 0.5)" in PAGE
    decoded = decode_payload(payload)
    assert decoded.unfolded
    np.testing.assert_array_equal(decoded.statistics, statistics)
    assert {key: value.tolist() for key, value in decoded.norm_state.items()} == {
        key: value.tolist() for key, value in affine.items()
    }
    folded = decode_payload(binary("payload"))
    assert (folded.unfolded, folded.statistics) == (False, None)


def test_the_envelope_is_what_the_code_signs() -> None:
    key = private_key()
    assert key.public_key().public_bytes_raw() == binary("public-key")
    assert f"whose id is `{key_id(key.public_key())}`" in PAGE
    assert sign_update(manifest(), key) == joined("envelope").encode()


def test_the_signature_covers_the_bytes_that_the_page_says() -> None:
    """Independent of the code's own signing: canonical JSON by the standard library, then plain Ed25519."""
    content = json.dumps(json.loads(block("manifest")), sort_keys=True, separators=(",", ":")).encode()
    envelope = json.loads(joined("envelope"))
    (signature,) = envelope["signatures"]
    assert base64.b64decode(envelope["manifest"]) == content
    public = Ed25519PublicKey.from_public_bytes(binary("public-key"))
    public.verify(base64.b64decode(signature["signature"]), binary("context") + content)
    assert binary("context") == b"cema.update/1\0"
    assert signature["key"] == hashlib.sha256(binary("public-key")).hexdigest()[:16]
    assert json.dumps(envelope, separators=(",", ":")) == joined("envelope")


def test_the_update_is_accepted() -> None:
    public = private_key().public_key()
    accepted = verify_update(
        joined("envelope").encode(),
        public_keys={key_id(public): public},
        cohort="north",
        base=hashlib.sha256(b"model").hexdigest(),
        running_version=6,
        now=NOW,
    )
    assert accepted == manifest()
    assert verify_payload(accepted, binary("payload")).norm_state.keys() == {"bn.scale", "bn.shift"}


def test_the_reasons_are_the_code_s() -> None:
    assert sorted(row[0] for row in table("reasons")) == sorted(REJECTION_REASONS)
    assert {row[2].strip("`") for row in table("steps")} == REJECTION_REASONS


def test_the_keys_document_is_what_the_code_signs_and_accepts() -> None:
    key = private_key()
    document = msgspec.json.decode(block("keys"), type=KeysDocument)
    signed = joined("keys-envelope").encode()
    assert sign_keys(document, key) == signed
    content = json.dumps(json.loads(block("keys")), sort_keys=True, separators=(",", ":")).encode()
    members = json.loads(signed)
    assert base64.b64decode(members["manifest"]) == content
    context = b"cema.keys/1\0"
    assert f"What is signed are {len(context)} bytes of context, the ASCII text `cema.keys/1`" in PAGE
    key.public_key().verify(base64.b64decode(members["signatures"][0]["signature"]), context + content)
    keyring = Keyring.of("north", {key_id(key.public_key()): key.public_key()}).accept(signed, now=NOW)
    assert [k.public_bytes_raw().hex() for k in keyring.trusted.values()] == list(document.keys)


def test_the_bundle_notice_is_what_the_code_signs_and_accepts() -> None:
    key = private_key()
    notice = msgspec.json.decode(block("notice"), type=BundleNotice)
    signed = joined("notice-envelope").encode()
    assert sign_notice(notice, key) == signed
    content = json.dumps(json.loads(block("notice")), sort_keys=True, separators=(",", ":")).encode()
    members = json.loads(signed)
    assert base64.b64decode(members["manifest"]) == content
    context = b"cema.bundle-notice/1\0"
    assert f"are {len(context)} bytes of context, the ASCII text `cema.bundle-notice/1`" in PAGE
    key.public_key().verify(base64.b64decode(members["signatures"][0]["signature"]), context + content)
    trusted = {key_id(key.public_key()): key.public_key()}
    assert verify_notice(signed, public_keys=trusted, cohort="north", serial=1, now=NOW) == notice


def sealed(content: bytes, key: Ed25519PrivateKey, name: str | None = None) -> bytes:
    """Sign any bytes as a manifest, without the code's own signing."""
    signature = {
        "key": name or key_id(key.public_key()),
        "signature": base64.b64encode(key.sign(binary("context") + content)).decode(),
    }
    envelope = {"manifest": base64.b64encode(content).decode(), "signatures": [signature]}
    return json.dumps(envelope, separators=(",", ":")).encode()


def test_the_checks_come_in_the_order_of_the_page() -> None:
    """One defect for every step up to the tenth; the first one that is left decides the reason."""
    key, other, former = private_key(), Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    good = json.loads(block("manifest"))
    spoilt = good | {"cohort": "south", "base": "0" * 64, "expires": int(NOW), "version": 6}
    trusted, identity = {key_id(key.public_key()): key.public_key()}, key_id(key.public_key())

    def encoded(content: dict[str, Any]) -> bytes:
        return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()

    broken = encoded(spoilt | {"more": 1})
    steps = [good["cohort"], good["base"], good["expires"], good["version"]]
    envelopes = [
        b'{"manifest": "YQ", "signatures": []}',
        b'{"manifest": "YQ==", "signatures": []}',
        sealed(broken, other).replace(b":", b": "),
        sealed(broken, former),
        sealed(broken, other),
        sealed(broken, other, identity),
        sealed(broken, key),
    ]
    for name, value in zip(("cohort", "base", "expires", "version"), steps, strict=True):
        envelopes.append(sealed(encoded(spoilt), key))
        spoilt = spoilt | {name: value}
    got = []
    for envelope in envelopes:
        with pytest.raises(UpdateRejected) as refused:
            verify_update(
                envelope,
                public_keys=trusted,
                cohort="north",
                base=good["base"],
                running_version=6,
                now=NOW,
                revoked={key_id(former.public_key())},
            )
        got.append(refused.value.reason)
    assert got == [row[2].strip("`") for row in table("steps")][:11]


def test_a_manifest_has_one_form_only() -> None:
    key = private_key()
    good = base64.b64decode(json.loads(joined("envelope"))["manifest"])
    arguments: dict[str, Any] = {
        "public_keys": {key_id(key.public_key()): key.public_key()},
        "cohort": "north",
        "base": manifest().base,
        "running_version": 6,
        "now": NOW,
    }
    assert verify_update(sealed(good, key), **arguments) == manifest()
    twice = good.replace(b'"version":7', b'"version":7,"version":7')
    for content in (twice, good.replace(b",", b", "), good.replace(b'"format":"cema.update/1",', b"")):
        assert content != good
        with pytest.raises(UpdateRejected) as refused:
            verify_update(sealed(content, key), **arguments)
        assert refused.value.reason == "malformed"


def test_a_payload_is_refused_as_the_page_says() -> None:
    payload, signed = binary("payload"), manifest()
    for damaged in (payload[:-1], payload[:-1] + b"?"):
        with pytest.raises(UpdateRejected) as refused:
            verify_payload(signed, damaged)
        assert refused.value.reason == "payload_mismatch"
    strange = b"no payload"
    other = msgspec.structs.replace(
        signed, payload=hashlib.sha256(strange).hexdigest(), payload_bytes=len(strange)
    )
    with pytest.raises(UpdateRejected) as refused:
        verify_payload(other, strange)
    assert refused.value.reason == "malformed"


def test_base64_and_json_have_one_form_only() -> None:
    key = private_key()
    trusted = {key_id(key.public_key()): key.public_key()}
    envelope = joined("envelope")
    for text in (
        envelope + "\n",
        " " + envelope,
        envelope.replace('":"', '": "', 1),
        envelope.replace("/", "\\/"),
        envelope.replace('fQ=="', 'fQ"', 1),
        envelope.replace('fQ=="', 'fR=="', 1),
        envelope.replace("eyJ", "e\\u0079J", 1),
        envelope.replace('"signatures"', '"more":1,"signatures"', 1),
    ):
        assert text != envelope
        with pytest.raises(UpdateRejected) as refused:
            verify_update(
                text.encode(), public_keys=trusted, cohort="north", base="0" * 64, running_version=0, now=NOW
            )
        assert refused.value.reason == "malformed", text


# --- bundle


def example_bundle(folder: Path, **more: Any) -> Bundle:
    described = json.loads(block("bundle"))
    payload = decode_payload(binary("payload"))
    page = msgspec.json.decode(block("bundle"), type=BundleManifest)
    return write_bundle(
        folder / "bundle",
        model_bytes=b"model",
        norm_state=payload.norm_state,
        golden_images=np.zeros((1, 2, 2, 1), np.uint8),
        golden_logits=payload.golden_logits,
        preprocessing=page.preprocessing,
        public_keys=[private_key().public_key()],
        **{key: described[key] for key in ("model", "classes", "labels", "input_name", "output_name")},
        **{key: described[key] for key in ("upload_side", "tolerance", "created_by")},
        **more,
    )


def example_with_statistics(folder: Path) -> Bundle:
    layers = (StatisticsLayer(layer="bn", size=2, eps=0.001),)
    source = np.array([[0.5, -1], [4, 0.25]])
    return example_bundle(
        folder, statistics=BundleStatistics(layers, b"statistics", source), mean_logits=(0.5, -0.25)
    )


def test_the_bundle_is_what_the_code_writes(tmp_path: Path) -> None:
    bundle = example_bundle(tmp_path)
    assert json.loads((bundle.path / "manifest.json").read_bytes()) == json.loads(block("bundle"))
    assert bundle.norm_path.read_bytes() == binary("norm")
    files = {str(path.relative_to(bundle.path)) for path in bundle.path.rglob("*") if path.is_file()}
    assert files == {
        "manifest.json",
        "model.onnx",
        "norm.bin",
        "golden.safetensors",
        f"keys/{key_id(private_key().public_key())}.pub",
    }
    assert set(safetensors.numpy.load((bundle.path / "golden.safetensors").read_bytes())) == {
        "images",
        "logits",
    }
    assert bundle.pack_norm(decode_payload(binary("payload")).norm_state) == binary("norm")


def test_the_bundle_with_statistics_is_what_the_code_writes(tmp_path: Path) -> None:
    bundle = example_with_statistics(tmp_path)
    told = json.loads(block("bundle")) | json.loads(block("bundle-statistics"))
    assert json.loads((bundle.path / "manifest.json").read_bytes()) == told
    assert (bundle.path / "statistics.bin").read_bytes() == binary("statistics")
    assert (bundle.path / "statistics.onnx").read_bytes() == b"statistics"
    context = bytes.fromhex(told["model_graph"]) + bytes.fromhex(told["statistics_graph"])
    assert hashlib.sha256(b"cema.bundle/2\0" + context).hexdigest() == told["base"]
    # By the page's formulas: weight and bias from scale and shift.
    scale, shift = (decode_payload(binary("payload")).norm_state[f"bn.{kind}"] for kind in ("scale", "shift"))
    mean, variance = np.frombuffer(binary("statistics"), "<f4").reshape(2, 2).astype(np.float64)
    affine = bundle.affine_state()
    np.testing.assert_allclose(affine["bn.scale"], scale * np.sqrt(variance + 0.001), rtol=1e-6)
    np.testing.assert_allclose(affine["bn.shift"], shift + mean * scale, rtol=1e-6)


def test_the_older_bundle_is_read_as_the_page_says(tmp_path: Path) -> None:
    bundle = example_bundle(tmp_path)
    newer = ("model_graph", "statistics", "statistics_graph", "mean_logits")
    assert re.findall(r"\*\*`cema.bundle/1`\*\* has no (.*?);", PAGE, re.DOTALL) == [
        "`model_graph`, `statistics`, `statistics_graph` and `mean_logits`"
    ]
    members = json.loads(block("bundle"))
    older = {name: value for name, value in members.items() if name not in newer}
    (bundle.path / "manifest.json").write_text(json.dumps(older | {"format": "cema.bundle/1"}))
    read = Bundle.load(bundle.path)
    assert read.manifest.base == bundle.manifest.base
    assert read.norm_state().keys() == read.affine_state().keys() == {"bn.scale", "bn.shift"}


def test_the_page_s_manifest_is_read_in_any_layout(tmp_path: Path) -> None:
    bundle = example_bundle(tmp_path)
    (bundle.path / "manifest.json").write_text(block("bundle"))
    (bundle.path / "unknown").write_text("ignored")
    assert Bundle.load(bundle.path).manifest == bundle.manifest


def test_the_golden_batch_is_compared_by_the_page_s_formula() -> None:
    rng = np.random.default_rng(0)
    assert "d = max|got - expected| / max(1, max|expected|)" in PAGE
    for scale in (0.1, 10.0):
        expected = scale * rng.standard_normal((3, 5))
        got = expected + 1e-3 * rng.standard_normal((3, 5))
        d = np.abs(got - expected).max() / max(1, np.abs(expected).max())
        assert check_golden(got, expected, d * 1.001) == pytest.approx(d)
        with pytest.raises(LogitsError):
            check_golden(got, expected, d * 0.999)
