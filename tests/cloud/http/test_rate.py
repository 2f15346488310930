"""The limits to what one device sends."""

from __future__ import annotations

import re
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from cloud_client import SOUTH, Cloud, refused
from cloud_process import Server, eventually
from cloud_support import StillEngine, make_samples, serving, write_config
from cloud_tiny_models import quadrants
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cema.cloud.config import CloudConfig, LimitsConfig
from cema.cloud.http import rate
from cema.cloud.http.rate import BURST_SECONDS, DeviceRates, Refusal
from cema.cloud.store.devices import Device, DeviceLimits
from cema.cloud.store.fleet import Limit, fleet_of
from cema.cloud.store.sqlite import SqliteStore
from cema.edge.agent import EdgeAgent
from cema.edge.config import CloudLink, EdgeConfig, UploadConfig
from cema.errors import StoreError
from cema.formats.sample import encode_samples

HOUR = 3600


class Clocks:
    """A clock that never goes back, and a wall clock, both by hand."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.off = 1e9

    def monotonic(self) -> int:
        return round(self.seconds * 1e9)

    def wall(self) -> float:
        return self.seconds + self.off


class Register:
    """A register that keeps nothing."""


def cam(name: str = "cam", **limits: int) -> Device:
    return Device(name, "device", "north", 0.0, None, limits=DeviceLimits(**limits))


def rates(clocks: Clocks, register: Any = None, **limits: Any) -> DeviceRates:
    config = LimitsConfig(**{"device_samples": 0.0, **limits})
    return DeviceRates(config, register or Register(), clock=clocks.monotonic, wall=clocks.wall)


def take(limit: DeviceRates, samples: int, size: int = 0, *, who: Device | None = None) -> Refusal | None:
    with limit.charged(who or cam(), samples, size) as refusal:
        return refusal


@given(
    per_second=st.floats(0.5, 50),
    per_hour=st.integers(1, 2000),
    steps=st.lists(st.tuples(st.floats(0, 20), st.integers(1, 40)), min_size=1, max_size=40),
)
@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_over_any_time_no_more_is_taken_than_every_limit_allows(
    per_second: float, per_hour: int, steps: list[tuple[float, int]]
) -> None:
    clocks = Clocks()
    limit = rates(clocks, device_samples=per_second, device_samples_per_hour=per_hour)
    taken = largest = 0
    for seconds, samples in steps:
        clocks.seconds += seconds
        largest = max(largest, samples)
        if take(limit, samples) is None:
            taken += samples
        assert taken <= per_second * (clocks.seconds + BURST_SECONDS) + largest
        assert taken <= per_hour * (1 + clocks.seconds / HOUR) + largest


def test_what_was_refused_is_taken_after_the_time_that_was_said() -> None:
    clocks = Clocks()
    limit = rates(clocks, device_samples=2.0)
    assert take(limit, 60) is None
    refusal = take(limit, 32)
    assert refusal is not None
    assert (refusal.limit, refusal.seconds) == ("samples_per_second", 16)
    assert take(limit, 32, who=cam("other")) is None
    clocks.seconds += 16
    assert take(limit, 32) is None


def test_a_request_larger_than_a_bucket_gets_through_a_full_one() -> None:
    clocks = Clocks()
    limit = rates(clocks, device_samples=1.0)
    assert take(limit, 256) is None
    assert take(limit, 1) is not None
    clocks.seconds += 256
    assert take(limit, 256) is None


@pytest.mark.parametrize(
    ("name", "window", "told"),
    [
        (
            "samples_per_hour",
            HOUR,
            "'cam' sends more than 1000 samples per hour (limits.device_samples_per_hour)",
        ),
        (
            "samples_per_day",
            24 * HOUR,
            "'cam' sends more than 1000 samples per day (limits.device_samples_per_day)",
        ),
        ("bytes_per_hour", HOUR, "'cam' sends more than 1.0 kB per hour (limits.device_bytes_per_hour)"),
        ("bytes_per_day", 24 * HOUR, "'cam' sends more than 1.0 kB per day (limits.device_bytes_per_day)"),
    ],
)
def test_each_limit_counts_what_it_says(name: str, window: int, told: str) -> None:
    clocks = Clocks()
    limit = rates(clocks, **{f"device_{name}": 1000})
    amount = {"samples": 0, "size": 0, "samples" if name.startswith("samples") else "size": 900}
    assert take(limit, **amount) is None
    refusal = take(limit, **amount)
    assert refusal == Refusal(name, 0.8 * window, told)
    clocks.seconds += refusal.seconds - 1
    assert take(limit, **amount) is not None
    clocks.seconds += 1
    assert take(limit, **amount) is None


def test_an_upload_takes_from_all_limits_or_from_none() -> None:
    clocks = Clocks()
    limit = rates(clocks, device_samples_per_hour=10, device_bytes_per_day=1000)
    assert take(limit, 1, 1000) is None
    for _ in range(20):  # refused for its bytes, it costs no samples
        assert take(limit, 1, 10) is not None
    clocks.seconds += 24 * HOUR
    assert take(limit, 10, 10) is None


def test_what_was_not_stored_is_given_back_to_hours_and_days() -> None:
    clocks = Clocks()
    limit = rates(clocks, device_samples=1.0, device_samples_per_hour=10)
    with pytest.raises(StoreError), limit.charged(cam(), 10, 0):
        raise StoreError("no room")
    clocks.seconds += 10
    assert take(limit, 10) is None
    refusal = take(limit, 1)
    assert refusal is not None
    assert refusal.limit == "samples_per_hour"


def test_one_device_may_have_limits_of_its_own() -> None:
    clocks = Clocks()
    limit = rates(clocks, device_samples_per_hour=10, device_samples_per_day=10)
    free, tight = cam("free", samples_per_hour=0, samples_per_day=0), cam("tight", samples_per_hour=2)
    assert take(limit, 10**6, who=free) is None
    assert take(limit, 10**6, who=free) is None
    assert take(limit, 2, who=tight) is None
    refusal = take(limit, 1, who=tight)
    assert refusal is not None
    assert refusal.message == "'tight' sends more than 2 samples per hour (the limit of this device)"
    assert take(limit, 7, who=cam("tight", samples_per_hour=9)) is None, "a new limit counts what was sent"
    assert take(limit, 1, who=cam("tight", samples_per_hour=9)) is not None


def test_invented_names_take_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate, "MOST_DEVICES", 50)
    limit = rates(Clocks(), device_samples=1.0)
    for i in range(60):
        take(limit, 1, who=cam(str(i)))
    assert len(limit._levels) == 50


def test_no_limit() -> None:
    assert take(rates(Clocks()), 10**9, 10**12) is None


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    with closing(SqliteStore(tmp_path / "cema.db", max_bytes=8 * 2**20)) as store:
        store.devices(["north"]).add("cam", cohort="north")
        store.devices(["north"]).add("dog", cohort="north")
        yield store


def test_a_restart_gives_nobody_a_full_bucket(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    clocks = Clocks()
    settings = {"device_samples_per_hour": 100, "device_bytes_per_day": 10**12}
    limit = rates(clocks, store.devices([]), **settings)
    assert take(limit, 90, 123) is None
    clocks.seconds += 60
    limit.write()
    clocks.seconds += 0.1 * HOUR - 60
    after = rates(clocks, store.devices([]), **settings)
    assert take(after, 30, 1) == Refusal(
        "samples_per_hour",
        0.1 * HOUR,
        "'cam' sends more than 100 samples per hour (limits.device_samples_per_hour)",
    )
    assert take(after, 20, 1) is None
    assert take(after, 100, 1, who=cam("dog")) is None
    # A clock that was set back, or far ahead, while the service was off.
    after.write()
    clocks.off -= 1e6
    assert take(rates(clocks, store.devices([]), **settings), 1) is not None
    clocks.off += 1e7
    assert take(rates(clocks, store.devices([]), **settings), 100) is None
    # Who is forgotten here is known there, also when it was not written yet.
    monkeypatch.setattr(rate, "MOST_DEVICES", 1)
    small = rates(clocks, store.devices([]), device_samples_per_hour=10)
    for _ in range(3):
        take(small, 10, who=cam("dog"))
        take(small, 10)
    assert take(small, 1) is not None
    assert take(small, 1, who=cam("dog")) is not None


def test_what_cannot_be_written_is_written_later(
    store: SqliteStore, caplog: pytest.LogCaptureFixture
) -> None:
    clocks = Clocks()
    limit = rates(clocks, store.devices([]), device_samples_per_hour=10)
    take(limit, 4)
    with store.database.write() as connection:
        connection.execute("ALTER TABLE device_usage RENAME TO lost")
    limit.write()
    assert "could not be kept" in caplog.text
    with store.database.write() as connection:
        connection.execute("ALTER TABLE lost RENAME TO device_usage")
    limit.write()
    assert store.devices([]).usage("cam")["samples_per_hour"].used == 4.0


def served(tmp_path: Path, limits: str) -> StillEngine:
    return StillEngine(CloudConfig.load(write_config(tmp_path, extra=f"[limits]\n{limits}\n", cohorts=SOUTH)))


def test_a_device_that_sends_too_fast_is_429_and_others_are_not(tmp_path: Path) -> None:
    # A rate so low that the bucket holds one request.
    engine = served(tmp_path, f"device_samples = {8 / BURST_SECONDS}")
    with serving(engine) as url:
        cloud = Cloud(engine, url)
        assert len(cloud.send(make_samples(8))) == 8
        response = cloud.post(encode_samples(make_samples(4, seed=1)))
        refused(response, 429, "too_fast")
        assert 14 <= int(response.headers["Retry-After"]) <= 16
        cloud.token = engine.devices.add("other", cohort="north")
        assert len(cloud.send(make_samples(4, seed=1))) == 4
        cloud.http.close()


def test_a_loud_device_waits_while_an_honest_one_is_served(tmp_path: Path) -> None:
    engine = served(tmp_path, "device_samples_per_hour = 16\nretry_after_seconds = 1")
    with serving(engine) as url:
        cloud = Cloud(engine, url)
        honest = engine.devices.add("honest", cohort="north")
        loud, answers = cloud.token, []
        for i in range(12):
            cloud.token = loud
            answers.append(cloud.post(encode_samples(make_samples(8, seed=i))))
            cloud.token = honest
            assert len(cloud.send(make_samples(1, seed=100 + i))) == 1
        assert [answer.status_code for answer in answers] == [200] * 2 + [429] * 10
        error = refused(answers[-1], 429, "too_fast")
        assert "16 samples per hour (limits.device_samples_per_hour)" in error["message"]
        assert 1700 < int(answers[-1].headers["Retry-After"]) <= 1801
        told = cloud.get("/metrics", token=cloud.operator).text
        assert 'cema_uploads_limited_total{cohort="north",limit="samples_per_hour"} 10.0' in told
        # An operator's word for one device holds from the next request on.
        cloud.token = loud
        fleet_of(engine.devices).act("cam", Limit(samples_per_hour=0))
        assert len(cloud.send(make_samples(8, seed=50))) == 8
        fleet_of(engine.devices).act("cam", Limit(as_configured=True))
        refused(cloud.post(encode_samples(make_samples(8, seed=51))), 429, "too_fast")
        cloud.http.close()


def test_what_the_store_did_not_take_counts_for_nothing(tmp_path: Path) -> None:
    engine = served(tmp_path, "device_samples_per_hour = 8\nbacklog_samples = 4\nbatch_samples = 4")
    with serving(engine) as url:
        cloud = Cloud(engine, url)
        assert len(cloud.send(make_samples(4))) == 4
        for _ in range(6):
            refused(cloud.post(encode_samples(make_samples(4, seed=1))), 429, "backlog_full")
        state = engine.store.claim("north")
        last = engine.store.sequence("north", after=0, limit=9)[-1]
        engine.store.commit_step("north", last, b"", epoch=state.epoch, now=1.0)
        assert len(cloud.send(make_samples(4, seed=1))) == 4
        cloud.http.close()


def test_the_edge_waits_as_long_as_it_is_told(
    factory: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(factory, tmp_path / "f")
    path = tmp_path / "f" / "cloud.toml"
    path.write_text(path.read_text().replace("[worker]", "[limits]\ndevice_samples_per_hour = 4\n\n[worker]"))
    engine = StillEngine(CloudConfig.load(path))
    token = engine.devices.add("cam", cohort="north")
    with serving(engine) as url:
        config = EdgeConfig(
            bundle=str(tmp_path / "f" / "bundle"),
            state=str(tmp_path / "state"),
            cloud=CloudLink(url=url, cohort="north", token=token),
            upload=UploadConfig(linger_seconds=0.0, batch_samples=4),
        )
        with EdgeAgent(config) as agent:
            agent.predict(quadrants(64, 1, drift=True)[0])
            eventually(lambda: agent.status().last_error)
            status = agent.status()
            assert "4 samples per hour" in (status.last_error or "")
            assert status.uploaded == engine.store.backlog("north").samples == 4
            assert status.spooled + status.queued > 0
            assert status.dropped == {}
            (wait,) = re.findall(r"uploader: .*; next attempt in ([0-9.]+) s", caplog.text)
            assert 3500 < float(wait) <= 3602


def test_limits_hold_over_a_restart_of_the_service(factory: Path, tmp_path: Path) -> None:
    shutil.copytree(factory, tmp_path / "f")
    path = tmp_path / "f" / "cloud.toml"
    path.write_text(path.read_text().replace("[worker]", "[limits]\ndevice_samples_per_hour = 8\n\n[worker]"))
    with closing(CloudConfig.load(path).open_store()) as opened:
        token = opened.devices(["north"]).add("cam", cohort="north")
    began = time.monotonic()
    for turn in range(2):
        server = Server(path, token)
        response = server.http.post(
            f"{server.url}/v1/cohorts/north/samples", content=encode_samples(make_samples(8, seed=turn))
        )
        assert server.end(signal.SIGTERM) == 0
        if time.monotonic() - began < 100:  # what flows in meanwhile does not suffice
            assert response.status_code == (200 if turn == 0 else 429)
