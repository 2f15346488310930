from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Callable, Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from edge_support import COHORT, Answer, Cloud, FakeTime, make_sample

from cema.edge.background import Clock
from cema.edge.client import CloudClient
from cema.edge.proxy import is_loopback
from cema.edge.retry import Backoff, LinkError, parse_retry_after
from cema.edge.spool import Spool
from cema.edge.uploader import Uploader
from cema.errors import ConfigError


@pytest.fixture
def spool(quick_path: Path) -> Iterator[Spool]:
    spool = Spool(quick_path / "spool.db", max_bytes=8 << 20)
    yield spool
    spool.close()


@pytest.fixture
def time() -> FakeTime:
    return FakeTime()


@pytest.fixture
def make_uploader(cloud: Cloud, spool: Spool, time: FakeTime) -> Iterator[Callable[..., Uploader]]:
    links = []

    def make(
        *, token: str = "secret", clock: Clock | None = None, timeout: float = 5.0, **changes: Any
    ) -> Uploader:
        clock = clock or time.clock
        link = CloudClient(cloud.url, COHORT, lambda: token, timeout, clock)
        links.append(link)
        options: dict[str, Any] = {
            "batch_samples": 4,
            "batch_bytes": 1 << 20,
            "linger_seconds": 0.0,
        } | changes
        return Uploader(
            spool,
            link,
            clock=clock,
            backoff=Backoff(random=random.Random(0)),
            on_change=lambda: None,
            **options,
        )

    yield make
    for link in links:
        link.close()
        link.release()


def drain(uploader: Uploader, spool: Spool) -> None:
    for _ in range(100):
        if not spool.samples:
            return
        uploader.guarded_step()
    raise AssertionError(f"the spool does not empty: {uploader.last_error}")


def test_everything_arrives_once_in_batches(make_uploader: Any, cloud: Cloud, spool: Spool) -> None:
    samples = [make_sample(i) for i in range(10)]
    spool.put_many(samples)
    drain(make_uploader(), spool)
    assert cloud.stored == {s.id: s for s in samples}
    assert [len(ids) for ids in cloud.received] == [4, 4, 2]
    assert spool.counters() == {"requests": 3, "uploaded": 10, "uploaded_bytes": 5000}
    command, path, headers = cloud.requests[0]
    assert (command, path) == ("POST", f"/v1/cohorts/{COHORT}/samples")
    assert headers["Authorization"] == "Bearer secret"
    assert headers["Content-Type"] == "application/vnd.cema.samples+msgpack"


def test_a_batch_keeps_to_bytes(make_uploader: Any, cloud: Cloud, spool: Spool) -> None:
    spool.put_many(make_sample(i, 1000) for i in range(6))
    drain(make_uploader(batch_samples=100, batch_bytes=2500), spool)
    assert [len(ids) for ids in cloud.received] == [2, 2, 2]


def test_a_batch_that_is_not_full_lingers(
    make_uploader: Any, cloud: Cloud, spool: Spool, time: FakeTime
) -> None:
    uploader = make_uploader(linger_seconds=5.0)
    assert uploader.step().seconds is None, "nothing to do: sleep until woken"
    spool.put_many(make_sample(i) for i in range(4))
    uploader.step()
    assert uploader.step().seconds is None
    spool.put_many([make_sample(4)])
    assert uploader.step().seconds == 5.0
    time.seconds += 2
    spool.put_many([make_sample(5)])
    assert uploader.step().seconds == 3.0
    assert [len(ids) for ids in cloud.received] == [4]
    time.seconds += 3
    uploader.step()
    assert [len(ids) for ids in cloud.received] == [4, 2]
    spool.put_many([make_sample(6)])
    uploader.hurry()
    uploader.step()
    assert [len(ids) for ids in cloud.received] == [4, 2, 1]
    spool.put_many(make_sample(i) for i in range(7, 11))
    uploader.step()
    assert [len(ids) for ids in cloud.received] == [4, 2, 1, 4]


def test_what_comes_after_a_silence_goes_soon_and_requests_keep_their_distance(
    make_uploader: Any, cloud: Cloud, spool: Spool, time: FakeTime
) -> None:
    uploader = make_uploader(linger_seconds=5.0)
    spool.put_many([make_sample(0)])
    assert uploader.step().seconds == 0.5
    time.seconds += 0.25
    spool.put_many([make_sample(1)])
    assert uploader.step().seconds == 0.25
    sent = []
    for i in range(2, 42):
        before = len(cloud.received)
        uploader.step()
        if len(cloud.received) > before:
            sent.append(time.seconds)
        time.seconds += 2.25
        spool.put_many([make_sample(i)])
    assert len(sent) > 10
    assert min(after - before for before, after in itertools.pairwise(sent)) >= 5.0


@pytest.mark.parametrize("asked", [(429, False), (429, True), (503, False), (503, True)])
def test_retry_after_is_honoured(
    make_uploader: Any, cloud: Cloud, spool: Spool, time: FakeTime, asked: tuple[int, bool]
) -> None:
    status, as_date = asked
    value = formatdate(time.seconds + 40, usegmt=True) if as_date else "40"
    cloud.script.append(Answer(status, {"Retry-After": value}))
    spool.put_many([make_sample(0)])
    uploader = make_uploader()
    pause = uploader.guarded_step()
    assert 40 <= pause.seconds <= 41
    assert not pause.wakeable, "new samples do not shorten what the server asked for"
    assert str(status) in uploader.last_error
    assert spool.samples == 1
    drain(uploader, spool)
    assert uploader.last_error is None


def test_an_absurd_retry_after_is_not_believed(make_uploader: Any, cloud: Cloud, spool: Spool) -> None:
    cloud.script.append(Answer(503, {"Retry-After": "99999999999"}))
    spool.put_many([make_sample(0)])
    assert make_uploader().guarded_step().seconds <= 3601


@pytest.mark.parametrize("answer", [Answer(500), Answer(502), Answer(reset=True), Answer(503)], ids=str)
def test_failures_back_off_with_full_jitter_and_lose_nothing(
    make_uploader: Any, cloud: Cloud, spool: Spool, answer: Answer
) -> None:
    cloud.script.extend([answer] * 12)
    spool.put_many(make_sample(i) for i in range(3))
    uploader = make_uploader()
    pauses = [uploader.guarded_step().seconds for _ in range(12)]
    rng = random.Random(0)
    assert pauses == [rng.uniform(0, min(300.0, 2.0**n)) for n in range(12)]
    assert spool.samples == 3
    drain(uploader, spool)
    assert len(cloud.stored) == 3
    assert uploader.backoff.failures == 0


def test_a_refused_token_is_told_and_tried_again_slowly(
    make_uploader: Any, cloud: Cloud, spool: Spool
) -> None:
    spool.put_many([make_sample(0)])
    uploader = make_uploader(token="wrong")
    pauses = [uploader.guarded_step().seconds for _ in range(4)]
    assert all(150 <= seconds <= 300 for seconds in pauses)
    assert "401" in uploader.last_error
    assert "the token is not known; enrol the device; check cloud.token" in uploader.last_error
    cloud.script.append(Answer(403))
    assert uploader.guarded_step().seconds >= 150
    assert "403" in uploader.last_error
    cloud.token = "wrong"  # the cloud comes to know it
    drain(uploader, spool)
    assert uploader.last_error is None


def test_413_halves_the_batch(make_uploader: Any, cloud: Cloud, spool: Spool) -> None:
    spool.put_many(make_sample(i) for i in range(8))
    cloud.script.extend([Answer(413), Answer(413)])
    drain(make_uploader(batch_samples=8), spool)
    assert [len(ids) for ids in cloud.received] == [2, 2, 2, 2]
    assert len(cloud.stored) == 8
    assert spool.dropped() == {}


def test_after_413_the_limits_come_back(make_uploader: Any, cloud: Cloud, spool: Spool) -> None:
    spool.put_many(make_sample(i) for i in range(120))
    cloud.script.extend([Answer(413), Answer(413)])
    drain(make_uploader(batch_samples=8), spool)
    assert [len(ids) for ids in cloud.received] == [2] * 8 + [4] * 8 + [8] * 9
    assert len(cloud.stored) == 120


def test_after_413_the_byte_limit_comes_back_too(make_uploader: Any, cloud: Cloud, spool: Spool) -> None:
    spool.put_many(make_sample(i, 1000) for i in range(40))
    cloud.script.append(Answer(413))
    drain(make_uploader(batch_samples=100, batch_bytes=4500), spool)
    assert [len(ids) for ids in cloud.received] == [2] * 8 + [4] * 6


def test_a_cloud_with_a_lower_limit_is_asked_ever_more_rarely(
    make_uploader: Any, cloud: Cloud, spool: Spool
) -> None:
    uploader = make_uploader(batch_samples=8)
    for i in range(200):
        spool.put_many(make_sample(8 * i + j) for j in range(8 - spool.samples))
        if uploader._limits[0] > 4:
            cloud.script.append(Answer(413))
        uploader.guarded_step()
    assert 200 - len(cloud.received) == 5, "at first, and then after 8, 16, 32 and 64 batches"
    assert spool.dropped() == {}


def test_a_sample_the_cloud_never_takes_does_not_block_the_others(
    make_uploader: Any, cloud: Cloud, spool: Spool
) -> None:
    spool.put_many(make_sample(i) for i in range(5))
    cloud.script.extend([Answer(413), Answer(413), Answer(413)])  # 4, 2, and then the first one alone
    drain(make_uploader(), spool)
    assert spool.dropped() == {"too_large_for_cloud": 1}
    assert set(cloud.stored) == {make_sample(i).id for i in range(1, 5)}
    assert [len(ids) for ids in cloud.received] == [4], "afterwards batches have their size again"


def test_only_what_has_a_verdict_leaves_the_spool(make_uploader: Any, cloud: Cloud, spool: Spool) -> None:
    spool.put_many(make_sample(i) for i in range(4))
    cloud.script.append(Answer(edit=lambda verdicts: verdicts[:1] * 3 + verdicts[2:3]))
    uploader = make_uploader()
    uploader.guarded_step()
    assert [s.id for s in spool.peek(9, 1 << 20)] == [make_sample(1).id, make_sample(3).id]
    assert spool.counters()["uploaded"] == 2
    drain(uploader, spool)
    assert cloud.received[1] == [make_sample(1).id, make_sample(3).id]
    assert spool.counters()["uploaded"] == 4, "duplicates count as delivered, once"


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>welcome to the hotel</html>", b"\xff\xfe", b'{"verdicts": []}', b'{"verdicts": 3}', b"[]"],
)
def test_an_answer_from_something_else_loses_nothing(
    make_uploader: Any, cloud: Cloud, spool: Spool, body: bytes
) -> None:
    cloud.script.append(Answer(body=body))
    spool.put_many([make_sample(0)])
    uploader = make_uploader()
    uploader.guarded_step()
    assert spool.samples == 1
    assert "verdict" in uploader.last_error
    drain(uploader, spool)


def test_verdicts_that_cannot_be_understood_leave_their_sample(
    make_uploader: Any, cloud: Cloud, spool: Spool
) -> None:
    spool.put_many(make_sample(i) for i in range(4))

    def edit(verdicts: list[dict[str, Any]]) -> list[dict[str, Any]]:
        verdicts[0]["verdict"] = "maybe"
        verdicts[1]["since"] = "a field of a later version"
        verdicts[2] = {"id": "ff" * 32, "verdict": "stored"}  # about a sample that was not sent
        verdicts[3] |= {"verdict": "rejected", "reason": "not an image"}
        return verdicts

    cloud.script.append(Answer(edit=edit))
    make_uploader().guarded_step()
    assert [s.id for s in spool.peek(9, 1 << 20)] == [make_sample(0).id, make_sample(2).id]
    assert spool.dropped() == {"rejected": 1}
    assert spool.counters()["uploaded"] == 1


def test_an_answer_lost_on_its_way_stores_once(make_uploader: Any, cloud: Cloud, spool: Spool) -> None:
    spool.put_many(make_sample(i) for i in range(3))
    cloud.script.append(Answer(body=b"cut"))  # stored there, but the device does not get to know
    uploader = make_uploader()
    uploader.guarded_step()
    drain(uploader, spool)
    assert len(cloud.received) == 2
    assert len(cloud.stored) == 3
    assert spool.counters()["uploaded"] == 3


def test_nobody_listening_is_an_error_with_a_remedy(spool: Spool, time: FakeTime, cloud: Cloud) -> None:
    url = cloud.url
    link = CloudClient(url.replace(url.rsplit(":", 1)[1], "1"), COHORT, lambda: "t", 2.0, time.clock)
    with pytest.raises(LinkError, match="reachable"):
        link.latest_update(None)
    link.close()
    with pytest.raises(LinkError, match="closed"):
        link.latest_update(None)
    link.release()


@pytest.mark.parametrize("name", ["http_proxy", "all_proxy"])
def test_a_cloud_on_this_machine_is_asked_without_the_proxy(
    cloud: Cloud, time: FakeTime, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    proxy = Cloud()
    monkeypatch.setenv(name, proxy.url)
    try:
        for host in ("127.0.0.1", "localhost"):
            link = CloudClient(cloud.url.replace("127.0.0.1", host), COHORT, lambda: "t", 2.0, time.clock)
            assert link.latest_update(None).status == 204
            link.close()
            link.release()
        assert (len(cloud.requests), proxy.requests) == (2, [])
        link = CloudClient("http://cloud.example", COHORT, lambda: "t", 2.0, time.clock)
        assert link.latest_update(None).status == 204
        assert len(proxy.requests) == 1, "any other is asked as the environment says"
        link.close()
        link.release()
    finally:
        proxy.close()


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("localhost", True),
        ("127.0.0.1", True),
        ("127.8.9.1", True),
        ("::1", True),
        ("128.0.0.1", False),
        ("localhost.example", False),
        ("127.example", False),
    ],
)
def test_loopback_is_told_from_other_hosts(host: str, local: bool) -> None:
    assert is_loopback(host) is local


@pytest.mark.parametrize("url", ["cloud.example", "ftp://cloud.example", "http://", ""])
def test_an_address_that_is_none_is_refused(url: str, time: FakeTime) -> None:
    with pytest.raises(ConfigError, match=r"cloud\.url"):
        CloudClient(url, COHORT, lambda: "t", 2.0, time.clock)


def test_closing_ends_a_request_in_flight_at_once(make_uploader: Any, cloud: Cloud, spool: Spool) -> None:
    release = threading.Event()
    spool.put_many(make_sample(i) for i in range(3))
    uploader = make_uploader(clock=Clock(), timeout=60.0)
    uploader.start()
    assert cloud.wait_for(lambda: len(cloud.stored) == 3)  # the connection is kept, and used again:
    cloud.script.append(Answer(hold=release))
    cloud.entered.clear()
    spool.put_many([make_sample(5)])
    uploader.notify()
    assert cloud.entered.wait(10)
    uploader.stop()
    uploader._link.close()
    assert uploader.join(5)
    release.set()
    assert spool.samples == 1


def test_a_bug_in_a_step_shows_and_the_thread_goes_on(
    make_uploader: Any, cloud: Cloud, spool: Spool, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    uploader = make_uploader()
    monkeypatch.setattr(spool, "peek", lambda *_: 1 / 0)
    spool.put_many([make_sample(0)])
    uploader.guarded_step()
    assert uploader.last_error == "uploader: division by zero"
    assert "ZeroDivisionError" in caplog.text
    monkeypatch.undo()
    drain(uploader, spool)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("0", 0.0),
        (" 17 ", 17.0),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0),
        ("-3", None),
        ("1.5", None),
        (None, None),
    ],
)
def test_retry_after(value: str | None, expected: float | None) -> None:
    assert parse_retry_after(value, now=50.0) == expected
