"""What /readyz tells apart."""

from __future__ import annotations

import time
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cloud_support import StillEngine, make_samples, write_config

from cema.cloud.config import CloudConfig
from cema.cloud.http.readiness import STALLED_SECONDS, Readiness
from cema.cloud.store.base import PublishedUpdate
from cema.errors import StoreUnavailable
from cema.testing.store_data import numbered_update

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[StillEngine]:
    made = StillEngine(CloudConfig.load(write_config(tmp_path)))
    (tmp_path / "data").mkdir(exist_ok=True)
    made.store.put_report("north", {"ready": True}, now=time.time())
    yield made
    made.stop()


def bad(engine: StillEngine, **options: Any) -> dict[str, str]:
    return {check.name: check.detail for check in Readiness(engine, **options).checks() if not check.ok}


def commit(engine: StillEngine, now: float, update: PublishedUpdate | None = None) -> None:
    epoch = engine.store.claim("north").epoch
    engine.store.commit_step("north", 0, b"", update, epoch=epoch, now=now)


def test_all_is_well(engine: StillEngine) -> None:
    assert bad(engine) == {}
    assert Readiness(engine).healthy("north")


def test_a_store_that_can_be_read_and_not_written(
    engine: StillEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def readonly(*_: object) -> None:
        raise StoreUnavailable("attempt to write a readonly database")

    monkeypatch.setattr(engine.store, "count", readonly)
    assert bad(engine) == {"store": "attempt to write a readonly database"}


def test_a_disk_with_little_space(engine: StillEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage(2**40, 2**40 - 1, 2**20))
    assert bad(engine) == {"disk": "1 MiB are free, 64 are needed"}


def test_a_clock_before_the_last_step_or_update_or_the_release(engine: StillEngine) -> None:
    now = time.time()
    commit(engine, now + 3600)
    assert "3600 s before the newest step or update" in bad(engine, clock=lambda: now)["clock"]
    assert "before this program" not in bad(engine, clock=lambda: now)["clock"]
    commit(engine, now, numbered_update(1))
    assert bad(engine, clock=lambda: now) == {}
    assert bad(engine, clock=lambda: 1.0).keys() >= {"clock"}


def test_samples_that_nobody_works_on(engine: StillEngine) -> None:
    engine.store.put("north", make_samples(3), device="d", now=0.0, max_backlog=99)
    now = time.time()
    assert bad(engine, clock=lambda: now + STALLED_SECONDS - 60) == {}
    assert "3 samples wait" in bad(engine, clock=lambda: now + STALLED_SECONDS + 60)["cohort north"]
    commit(engine, now + STALLED_SECONDS)
    assert bad(engine, clock=lambda: now + STALLED_SECONDS + 60) == {}


def test_a_cohort_that_was_set_aside_says_why(engine: StillEngine) -> None:
    engine.store.put_report("north", {"ready": False, "error": "the disk is full"}, now=time.time())
    assert bad(engine) == {"cohort north": "the disk is full"}
    assert not Readiness(engine).healthy("north")


def test_it_writes_seldom_however_often_it_is_asked(engine: StillEngine) -> None:
    readiness = Readiness(engine)
    for _ in range(50):
        readiness.checks()
    assert engine.store.counters("north")["server.checks"] <= 2
