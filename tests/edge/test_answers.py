"""Answers that are not the cloud's, or are made to do harm: the status counts, and the message says what came."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from edge_device import Device
from edge_support import COHORT, Answer, Cloud, FakeTime, make_sample, make_update
from hypothesis import given, settings
from hypothesis import strategies as st

from cema.edge.answers import explain, is_web_page, one_line
from cema.edge.client import CloudClient
from cema.edge.retry import Backoff, LinkError, parse_retry_after
from cema.edge.spool import Spool
from cema.edge.uploader import Uploader
from cema.errors import CemaError
from cema.formats.bundle import Bundle
from cema.formats.payload import encode_payload

PORTAL = b"<!DOCTYPE html>\n<html><head><title>Hotel  Adria\nWLAN</title></head><body>accept our terms</body></html>"
BODIES = {
    "empty": b"",
    "not utf-8": b'{"error": {"message": "caf\xe9", "code": "x"}}',
    "not utf-8 at all": b"\xff\xfe\x00\xd8" * 100,
    "deep": b"[" * 60_000,
    "deep error": b'{"error":' * 6_000 + b"1" + b"}" * 6_000,
    "deep member": b'{"error": {"message": "m", "more": ' + b"[" * 30_000 + b"]" * 30_000 + b"}}",
    "page": PORTAL,
    "giant": b"x" * (8 << 20),
    "giant message": json.dumps({"error": {"message": "m" * 50_000, "remedy": "r" * 5_000}}).encode(),
    "lines": json.dumps({"error": {"message": "a\nb\r\x1b[31mc\u2028d", "remedy": "\x00"}}).encode(),
    "surrogate": b'{"error": {"message": "\\ud800"}}',
    "numbers": b'{"error": {"message": 3}}',
    "huge number": b'{"error": ' + b"9" * 50_000 + b"}",
    "array": b"[]",
}


@dataclass
class Sender:
    """An uploader without its thread."""

    cloud: Cloud
    folder: Path

    def __post_init__(self) -> None:
        self.time = FakeTime()
        self.spool = Spool(self.folder / "spool.db", max_bytes=8 << 20)
        self.link = CloudClient(self.cloud.url, COHORT, lambda: self.cloud.token, 2.0, self.time.clock)
        self.uploader = Uploader(
            self.spool,
            self.link,
            batch_samples=8,
            batch_bytes=1 << 20,
            linger_seconds=0.0,
            clock=self.time.clock,
            backoff=Backoff(random=random.Random(0)),
            on_change=lambda: None,
        )

    def step(self) -> float:
        return self.uploader.guarded_step().seconds or 0.0

    @property
    def error(self) -> str:
        return self.uploader.last_error or ""


@pytest.fixture
def sender(cloud: Cloud, quick_path: Path) -> Iterator[Sender]:
    sender = Sender(cloud, quick_path)
    yield sender
    sender.link.close()
    sender.link.release()
    sender.spool.close()


@pytest.mark.parametrize("kind", BODIES)
def test_a_batch_that_is_too_large_is_halved_whatever_the_answer_says(
    sender: Sender, cloud: Cloud, kind: str
) -> None:
    sender.spool.put_many(make_sample(i) for i in range(8))
    cloud.script.append(Answer(413, body=BODIES[kind]))
    for _ in range(3):
        sender.step()
    assert [len(ids) for ids in cloud.received] == [4, 4]
    assert sender.error == ""


@pytest.mark.parametrize("kind", BODIES)
def test_the_wish_to_wait_holds_whatever_the_answer_says(sender: Sender, cloud: Cloud, kind: str) -> None:
    sender.spool.put_many([make_sample(1)])
    cloud.script.append(Answer(503, {"Retry-After": "40"}, BODIES[kind]))
    assert 40 <= sender.step() <= 41
    assert "503" in sender.error
    assert sender.error.isprintable(), "one line, and no terminal's escapes"
    assert len(sender.error) < 1000
    cloud.script.append(Answer(401, body=BODIES[kind]))
    assert sender.step() >= 150
    assert "check cloud.token" in sender.error


@pytest.mark.parametrize(
    "rest",
    [
        b"Content-Length: 5000\r\n\r\n{",
        b"Transfer-Encoding: chunked\r\n\r\n5\r\nab",
        b"Transfer-Encoding: chunked\r\n\r\nnonsense\r\n",
        b"Content-Encoding: gzip\r\nContent-Length: 4\r\n\r\n\x1f\x8b\xff\xff",
        b"Content-Type: application/json; charset=nonsense\r\nContent-Length: 1\r\n\r\n{",
    ],
    ids=["cut", "cut chunk", "no chunk", "no gzip", "no charset"],
)
def test_a_body_that_breaks_off_leaves_the_status(sender: Sender, cloud: Cloud, rest: bytes) -> None:
    sender.spool.put_many(make_sample(i) for i in range(8))
    cloud.script.append(Answer(raw=b"HTTP/1.1 413 Too Large\r\nConnection: close\r\n" + rest))
    cloud.script.append(Answer(raw=b"HTTP/1.1 429 Slow\r\nConnection: close\r\nRetry-After: 50\r\n" + rest))
    sender.step()
    assert 50 <= sender.step() <= 51
    sender.step()
    assert [len(ids) for ids in cloud.received] == [4]


@pytest.mark.parametrize("kind", [kind for kind in BODIES if kind not in {"page"}])
def test_verdicts_that_are_none_lose_nothing(sender: Sender, cloud: Cloud, kind: str) -> None:
    sender.spool.put_many([make_sample(1)])
    cloud.script.append(Answer(body=BODIES[kind]))
    cloud.script.append(Answer(body=b'{"verdicts": [' + (BODIES[kind][:100_000] or b"0") + b"]}"))
    for _ in range(2):
        sender.step()
        assert "verdict" in sender.error
        assert sender.spool.samples == 1
    sender.step()
    assert (sender.spool.samples, sender.error) == (0, "")


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_says_where_to_and_is_not_followed(sender: Sender, cloud: Cloud, status: int) -> None:
    sender.spool.put_many([make_sample(1)])
    where = f"https://cloud.example/pre/v1/cohorts/{COHORT}/samples"
    cloud.script.extend([Answer(status, {"Location": where}, PORTAL)] * 12)
    pauses = [sender.step() for _ in range(12)]
    assert (
        f"{status}: the cloud redirects to https://cloud.example/pre; set cloud.url to that" in sender.error
    )
    assert max(pauses) <= 30, "someone may set it right at any moment"
    assert len(cloud.requests) == 12
    sender.step()
    assert (sender.spool.samples, sender.error) == (0, "")


@pytest.mark.parametrize(
    ("location", "words"),
    [
        (
            "https://cloud.example/",
            "redirects to https://cloud.example/; if that is the cloud, set cloud.url",
        ),
        ("//login.hotel/?next=/v1", "redirects to http://login.hotel/?next=/v1; if that"),
        ("/login", "/login; if that is the cloud, set cloud.url to that"),
        ("http://[", "'http://[', which is no address"),
        ("javascript:alert(1)", "'javascript:alert(1)', which is no address"),
        ("https://x.example/" + "a" * 5000, "https://x.example/aaa"),
        ("http://h:99999999/", "redirects to http://h:99999999/"),
    ],
)
def test_any_redirect_is_told(sender: Sender, cloud: Cloud, location: str, words: str) -> None:
    sender.spool.put_many([make_sample(1)])
    cloud.script.append(Answer(302, {"Location": location}))
    assert sender.step() <= 1
    assert words in sender.error
    assert len(sender.error) < 1000
    cloud.script.append(Answer(301))
    sender.step()
    assert "301" in sender.error


def test_a_slash_too_many_does_not_send_in_circles() -> None:
    url = "https://c.example/v1/cohorts/n/samples"
    text = explain(307, {"location": url + "/"}, b"", url, "/v1/cohorts/n/samples")
    assert text.startswith(f"the cloud redirects to {url}/; if that is the cloud")


def test_a_login_page_is_no_verdict_and_no_update(
    sender: Sender, cloud: Cloud, bundle: Bundle, key: Ed25519PrivateKey, quick_path: Path
) -> None:
    sender.spool.put_many([make_sample(1)])
    cloud.script.extend([Answer(body=PORTAL)] * 10)
    assert max(sender.step() for _ in range(10)) <= 30
    assert "expected verdicts on the samples, got a web page 'Hotel Adria WLAN'" in sender.error
    assert "log in there, or check cloud.url" in sender.error
    assert sender.spool.samples == 1

    cloud.publish(make_update(bundle, key, 3))
    device = Device(bundle, cloud, quick_path / "state", FakeTime(seconds=1_700_000_000))
    cloud.script.extend([Answer(body=PORTAL)] * 10)
    assert max(device.poll() for _ in range(10)) <= 30
    assert "expected an update, got a web page 'Hotel Adria WLAN'" in (device.updater.last_error or "")
    assert device.rejected == {}, "nobody signed or sent an update"
    cloud.script.extend([Answer(), Answer(body=PORTAL)])
    device.poll()
    assert "expected an update's payload, got a web page" in (device.updater.last_error or "")
    device.poll()
    assert device.serves(3)
    assert (device.rejected, device.updater.last_error) == ({}, None)
    device.stop()


def test_a_mark_that_cannot_be_sent_back_is_forgotten(
    cloud: Cloud, bundle: Bundle, key: Ed25519PrivateKey, quick_path: Path
) -> None:
    device = Device(bundle, cloud, quick_path / "state", FakeTime(seconds=1_700_000_000))
    envelope = make_update(bundle, key, 3).envelope
    for mark in (b'"caf\xe9"', b'"' + b"a" * 20_000 + b'"', b""):
        head = b"HTTP/1.1 200 OK\r\nETag: " + mark + b"\r\nContent-Length: %d\r\n\r\n" % len(envelope)
        cloud.publish(make_update(bundle, key, 3))
        cloud.script.append(Answer(raw=head + envelope))
        device.poll()
        assert device.serves(3)
        device.poll()
        assert device.updater.last_error is None
        assert "If-None-Match" not in cloud.requests[-1][2]
        device.updater._etag = None
    device.stop()


@given(body=st.binary(max_size=300), status=st.integers(300, 599), location=st.text(max_size=60))
@settings(max_examples=200, deadline=None)
def test_any_answer_becomes_one_line(body: bytes, status: int, location: str) -> None:
    headers = {"location": location} if status % 2 else {}
    text = explain(status, headers, body, "https://c.example/v1/x", "/v1/x")
    assert text
    assert text.isprintable()


@given(
    value=st.one_of(st.text(max_size=40), st.from_regex(r"\w{3}, -?\d+ \w+ -?\d+ \d+:\d+:\d+ [-+A-Z0-9]*"))
)
@settings(max_examples=200, deadline=None)
def test_any_retry_after_is_seconds_or_none(value: str) -> None:
    seconds = parse_retry_after(value, now=1e9)
    assert seconds is None or seconds >= 0


def test_a_payload_is_never_taken_for_a_page(bundle: Bundle) -> None:
    payload = encode_payload(bundle.norm_state(), bundle.golden_logits)
    assert not is_web_page(payload)
    for length in range(0x3C, 1 << 24, 0x100):
        assert not is_web_page(length.to_bytes(8, "little") + b'{"__metadata__"')
    assert is_web_page(b"\xef\xbb\xbf\n <HTML lang=en>")
    assert is_web_page(b"<title>x</title>")
    assert one_line("a \n b") == "a b"


def test_an_answer_is_an_error_of_ours(sender: Sender, cloud: Cloud) -> None:
    cloud.script.append(Answer(511, body=PORTAL))
    with pytest.raises(
        LinkError, match="511: a web page 'Hotel Adria WLAN'; log in to the network"
    ) as caught:
        sender.link.latest_update(None)
    assert isinstance(caught.value, CemaError)
    assert caught.value.soon
