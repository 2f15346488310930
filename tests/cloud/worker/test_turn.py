"""A cohort that cannot work is set aside, and goes on when it can."""

from __future__ import annotations

import itertools
import logging
import threading
from typing import Any

import msgspec
import pytest
from worker_cloud import Cloud, drain

from cema.cloud.worker.attempts import WorkerFailed
from cema.cloud.worker.cohort import CohortWorker
from cema.cloud.worker.rounds import open_cohort, run
from cema.cloud.worker.turn import FIRST_DELAY, Turn
from cema.errors import StoreError, StoreFull, StoreUnavailable


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def turn_of(cloud: Cloud, clock: Clock) -> Turn:
    return Turn(
        cloud.store, "north", lambda: open_cohort(cloud.store, cloud.config, cloud.cohort), clock=clock
    )


def spoil_checkpoint(cloud: Cloud, cohort: str = "north") -> bytes:
    with cloud.store.database.write() as connection:
        (saved,) = connection.execute("SELECT checkpoint FROM cohorts WHERE name = ?", (cohort,)).fetchone()
        connection.execute("UPDATE cohorts SET checkpoint = x'00' WHERE name = ?", (cohort,))
    assert isinstance(saved, bytes)
    return saved


@pytest.mark.parametrize("error", [StoreFull("the disk is full"), StoreUnavailable("disk I/O error")])
def test_a_full_disk_ends_nothing_and_costs_no_sample(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch, error: StoreError
) -> None:
    clock = Clock()
    turn = turn_of(cloud, clock)
    cloud.send(32)
    commit = cloud.store.commit_step

    def full(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(cloud.store, "commit_step", full)
    for _ in range(20):  # more often than processes may die of a step
        assert not turn.once()
        clock.now += 100
    assert turn.failure is None
    report = cloud.store.status("north")["worker"]
    assert report["ready"] is False
    assert str(error) in report["error"]
    monkeypatch.setattr(cloud.store, "commit_step", commit)
    while turn.once():
        pass
    assert cloud.store.backlog("north").samples == 0
    assert "worker.abandoned_samples" not in cloud.counters()
    assert cloud.counters()["worker.fresh_steps"] == 2
    turn.report()
    assert cloud.store.status("north")["worker"]["ready"] is True


def test_it_waits_longer_from_time_to_time(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, tries = Clock(), []
    turn = turn_of(cloud, clock)

    def locked(self: CohortWorker) -> bool:
        tries.append(clock.now)
        raise StoreUnavailable("locked")

    monkeypatch.setattr(CohortWorker, "run_once", locked)
    for second in range(200):
        clock.now = float(second)
        assert not turn.once()
    waits = [b - a for a, b in itertools.pairwise(tries)]
    assert waits == [FIRST_DELAY, 2 * FIRST_DELAY, 4 * FIRST_DELAY, 8 * FIRST_DELAY, 16 * FIRST_DELAY, 60, 60]


def test_an_unreadable_checkpoint_sets_its_cohort_aside_until_it_is_restored(cloud: Cloud) -> None:
    cloud.send(32)
    drain(cloud.open())
    saved = spoil_checkpoint(cloud)
    clock = Clock()
    turn = turn_of(cloud, clock)
    assert not turn.once()
    assert "cannot be read" in cloud.store.status("north")["worker"]["error"]
    with cloud.store.database.write() as connection:
        connection.execute("UPDATE cohorts SET checkpoint = ?", (saved,))
    cloud.send(16)
    clock.now += 100
    assert turn.once()
    assert cloud.counters()["worker.fresh_steps"] == 3


def test_what_a_new_process_may_cure_is_kept_for_the_round(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("device lost")

    turn = turn_of(cloud, Clock())
    monkeypatch.setattr("cema.adapt.learner.CemaLearner.learn", broken)
    cloud.send(32)
    while turn.once():
        pass
    assert isinstance(turn.failure, WorkerFailed)


def test_the_other_cohorts_go_on(cloud: Cloud, caplog: pytest.LogCaptureFixture) -> None:
    cloud.send(32)
    drain(cloud.open())
    spoil_checkpoint(cloud)
    south = msgspec.structs.replace(cloud.cohort, name="south")
    cloud.config = msgspec.structs.replace(cloud.config, cohort=(cloud.cohort, south))
    cloud.store.open_cohort("south", base=cloud.store.status("north")["base"])
    cloud.send(32, cohort="south")
    stop = threading.Event()
    with caplog.at_level(logging.INFO):
        thread = threading.Thread(target=run, args=(cloud.config, stop, threading.Event()))
        thread.start()
        done = threading.Event()
        while not done.wait(0.02) and thread.is_alive():
            if not cloud.store.backlog("south").samples:
                done.set()
        stop.set()
        thread.join()
    assert cloud.store.counters("south")["worker.fresh_steps"] == 2
    assert "north: set aside" in caplog.text
