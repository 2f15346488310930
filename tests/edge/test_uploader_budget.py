"""The uploader under a budget, over a real connection."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edge_support import COHORT, Answer, Cloud, FakeTime, images, make_sample

from cema.edge.agent import EdgeAgent
from cema.edge.budget import Budget
from cema.edge.budget_config import BudgetConfig
from cema.edge.client import CloudClient
from cema.edge.config import EdgeConfig
from cema.edge.program import run
from cema.edge.retry import Backoff
from cema.edge.spool import Spool
from cema.edge.uploader import Uploader
from cema.formats.sample import encode_samples


@dataclass
class Device:
    """A spool, a budget and an uploader whose time passes only when it waits."""

    path: Path
    cloud: Cloud
    time: FakeTime

    def start(self, url: str | None = None, **limits: Any) -> Device:
        self.spool = Spool(self.path / "spool.db", max_bytes=8 << 20)
        self.budget = Budget(BudgetConfig(**limits), self.path / "budget.json", self.time.clock)
        self.link = CloudClient(url or self.cloud.url, COHORT, lambda: "secret", 5.0, self.time.clock)
        self.uploader = Uploader(
            self.spool,
            self.link,
            batch_samples=32,
            batch_bytes=1 << 20,
            linger_seconds=0.0,
            clock=self.time.clock,
            backoff=Backoff(random=random.Random(0)),
            on_change=lambda: None,
            budget=self.budget,
        )
        return self

    def stop(self) -> None:
        self.link.close()
        self.link.release()
        self.spool.close()

    def run(self, seconds: float) -> list[tuple[float, int]]:
        """Step until that much time has passed; return when how many bytes were sent."""
        sent, end = [], self.time.seconds + seconds
        while self.time.seconds < end:
            before = len(self.cloud.requests)
            pause = self.uploader.guarded_step()
            if len(self.cloud.requests) > before:
                sent.append((self.time.seconds, int(self.cloud.requests[-1][2]["Content-Length"])))
            self.time.seconds += seconds if pause.seconds is None else pause.seconds
        return sent


@pytest.fixture
def device(quick_path: Path, cloud: Cloud) -> Iterator[Device]:
    device = Device(quick_path, cloud, FakeTime(seconds=1_800_000_000.0))
    yield device
    device.stop()


def size_of(*seeds: int, size: int = 500) -> int:
    return len(encode_samples([make_sample(seed, size) for seed in seeds]))


def test_a_batch_is_cut_to_what_fits_and_the_rest_waits(device: Device, cloud: Cloud) -> None:
    allowed = size_of(0, 1, 2)
    device.start(bytes_per_hour=allowed).spool.put_many(make_sample(i) for i in range(8))
    device.uploader.guarded_step()
    assert [len(ids) for ids in cloud.received] == [3]
    assert device.budget.room().bytes == 0
    assert device.uploader.guarded_step().seconds == 60.0, "it looks again every minute"
    assert device.uploader.last_error is None
    status = device.budget.status()
    assert status.waits_for == "bytes_per_hour"
    assert status.waits_until == device.time.seconds + 3660
    sent = device.run(4 * 3600)
    assert [time - 1_800_000_000 for time, _ in sent] == [3660, 7320]
    assert len(cloud.stored) == 8
    assert device.spool.dropped() == {}
    assert device.budget.status().waits_for is None


def test_the_bytes_that_count_are_the_bodys(device: Device) -> None:
    device.start(bytes_per_day=10**6).spool.put_many(make_sample(i, 100 + 37 * i) for i in range(40))
    sent = device.run(1)
    assert sum(size for _, size in sent) == 10**6 - device.budget.room().bytes


def test_samples_are_limited_too(device: Device, cloud: Cloud) -> None:
    device.start(samples_per_hour=5).spool.put_many(make_sample(i) for i in range(12))
    device.run(3600)
    assert [len(ids) for ids in cloud.received] == [5]
    device.run(2 * 3600)
    assert [len(ids) for ids in cloud.received] == [5, 5, 2]


def test_every_attempt_counts_whether_or_not_an_answer_came(device: Device, cloud: Cloud) -> None:
    size = size_of(0)
    device.start(bytes_per_hour=2 * size).spool.put_many([make_sample(0)])
    cloud.script.extend([Answer(500), Answer(reset=True)])
    sent = device.run(3600)
    assert [bytes_ for _, bytes_ in sent] == [size, size]
    assert cloud.stored == {}
    device.run(3600)
    assert len(cloud.stored) == 1


def test_what_was_never_sent_does_not_count(device: Device) -> None:
    device.start("http://127.0.0.1:1", bytes_per_month=1000).spool.put_many([make_sample(0)])
    for _ in range(5):
        device.uploader.guarded_step()
    assert "reachable" in (device.uploader.last_error or "")
    assert device.spool.counters()["requests"] == 5
    assert device.budget.room().bytes == 1000


def test_a_sample_that_no_window_allows_is_dropped_and_told(
    device: Device, cloud: Cloud, caplog: pytest.LogCaptureFixture
) -> None:
    device.start(bytes_per_hour=10_000, bytes_per_day=2000).spool.put_many(
        [make_sample(0), make_sample(1, 1990), make_sample(2)]
    )
    device.run(60)
    assert device.spool.dropped() == {"over_budget": 1}
    assert "raise the limits of [budget], or make samples smaller with upload.max_side" in caplog.text
    assert set(cloud.stored) == {make_sample(0).id, make_sample(2).id}


def test_a_restart_forgets_nothing(device: Device, cloud: Cloud) -> None:
    allowed = size_of(0, 1)
    device.start(bytes_per_hour=allowed).spool.put_many(make_sample(i) for i in range(4))
    device.uploader.guarded_step()
    for _ in range(3):
        device.stop()
        device.time.seconds += 600
        device.start(bytes_per_hour=allowed).uploader.guarded_step()
    assert [len(ids) for ids in cloud.received] == [2]
    device.run(3600)
    assert len(cloud.stored) == 4


def test_quiet_hours_end_when_the_clock_is_set(device: Device, cloud: Cloud) -> None:
    device.start(quiet_hours=("08:00-18:00",), quiet_clock="utc").spool.put_many([make_sample(0)])
    assert device.uploader.guarded_step().seconds == 60.0
    assert device.budget.status().waits_for == "quiet_hours"
    assert device.budget.status().waits_until == 1_800_000_000 + 10 * 3600
    device.uploader.hurry()
    device.run(9.9 * 3600)
    assert cloud.received == [], "nor when somebody is in a hurry"
    device.run(3600)
    assert len(cloud.stored) == 1


def test_no_window_of_an_hour_has_more_whatever_the_cloud_answers(device: Device, cloud: Cloud) -> None:
    rng, allowed, sent = random.Random(1), 9000, []
    device.start(bytes_per_hour=allowed)
    for i in range(200):
        device.spool.put_many(
            make_sample(1000 * i + j, rng.randint(1, 3000)) for j in range(rng.randint(0, 3))
        )
        status = rng.choice([200, 200, 413, 500, 429])
        cloud.script.extend([Answer(status)] if status != 200 else [Answer(reset=rng.random() < 0.2)])
        sent += device.run(rng.choice([1.0, 60.0, 900.0]))
        if rng.random() < 0.1:
            device.stop()
            device.start(bytes_per_hour=allowed)
    assert len(sent) > 30
    for end, _ in sent:
        assert sum(size for time, size in sent if end - 3600 <= time <= end) <= allowed


def test_the_programs_status_says_it_in_words(
    make_config: Callable[..., EdgeConfig], cloud: Cloud, tmp_path: Path
) -> None:
    np.save(tmp_path / "images.npy", images(6))
    out = io.StringIO()
    config = make_config(cloud, budget=BudgetConfig(bytes_per_month=50_000_000, samples_per_day=4))
    assert run(config, tmp_path / "images.npy", batch=6, linger=2.0, out=out) == 0
    last = json.loads(out.getvalue().splitlines()[-1])
    assert last["event"] == "finished"
    assert last["budget"]["limits"]["samples_per_day"]["used"] == 4
    month, day, wait = last["budget"]["text"].split("; ")
    assert month.startswith("0 of 50 MB this month, ")
    assert day.startswith("4 of 4 samples this day, ")
    assert wait.startswith("waits for samples_per_day until ")


def test_the_agent_keeps_to_it_and_says_so(
    make_config: Callable[..., EdgeConfig], cloud: Cloud, quick_path: Path
) -> None:
    config = make_config(cloud, budget=BudgetConfig(samples_per_day=3))
    with EdgeAgent(config) as agent:
        agent.predict(images(10))
        assert cloud.wait_for(lambda: len(cloud.stored) == 3)
        assert not agent.flush(0.2)
        budget = agent.status().budget
        assert budget is not None
        assert budget.limits["samples_per_day"].used == 3
        assert budget.waits_for == "samples_per_day"
        assert agent.status().last_error is None
    assert (quick_path / "state" / "budget.json").exists()
    with EdgeAgent(make_config(cloud)) as agent:
        assert agent.status().budget is None
        assert agent.flush(10)
    assert len(cloud.stored) == 10
