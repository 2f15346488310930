"""A cohort's worker when its devices come to another base model."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from cloud_support import samples_of
from cloud_tiny_models import quadrants
from worker_cloud import Cloud, drain

from cema.cloud.config import CloudConfig
from cema.cloud.signing.signers import open_signers
from cema.cloud.store.base import OtherBase
from cema.cloud.store.bases import Migration
from cema.cloud.worker.cohort import CohortWorker
from cema.cloud.worker.rounds import Opener, open_cohort, run
from cema.cloud.worker.turn import Turn
from cema.formats.bundle import Bundle


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def migrated(cloud: Cloud, newer: Path, *, again: int = 0) -> CloudConfig:
    """Bring the cohort to the newer bundle, and return the configuration that goes with it."""
    change = Migration(
        old=cloud.store.status("north")["base"],
        new=Bundle.load(newer / "bundle").manifest.base,
        serial=1,
        notice=b"{}",
        again=again,
    )
    cloud.store.migrate("north", change, actor="ann", now=cloud.now)
    cohort = msgspec.structs.replace(
        cloud.cohort, bundle=str(newer / "bundle"), model_weights=str(newer / "edge.safetensors")
    )
    return msgspec.structs.replace(cloud.config, cohort=(cohort,))


def test_the_new_base_learns_from_stored_samples_and_goes_on_counting(cloud: Cloud, newer: Path) -> None:
    cloud.publish(every_steps=1, gate=1.0)
    cloud.send(96)
    drain(cloud.open())
    before = cloud.store.latest_update("north")
    assert before is not None
    cloud.config = migrated(cloud, newer, again=48)
    worker = cloud.open()
    assert (worker.learner.steps, worker.learner.replayable, worker.publisher.version) == (0, 48, 0)
    assert worker.publisher.next_version == before.version + 1
    drain(worker)
    assert worker.learner.replayable == 96
    base = worker.publisher.bundle.manifest.base
    after = cloud.store.newest_of("north", base)
    assert after is not None
    assert after.version > before.version
    assert cloud.store.latest_update("north") == after
    again = cloud.open()  # and a restart goes on with what was learned on the new base
    assert (again.publisher.version, again.learner.steps) == (after.version, worker.learner.steps)


def test_a_device_that_sent_far_more_does_not_fill_what_is_replayed(cloud: Cloud, newer: Path) -> None:
    drain(cloud.open())
    for device, count in (("flood", 200), ("quiet", 8)):
        images, _ = quadrants(count, count)
        cloud.store.put("north", samples_of(images), device=device, now=1.0, max_backlog=10**6)
    epoch = cloud.store.claim("north").epoch
    last = cloud.store.status("north")["last_sample"]
    cloud.store.commit_step("north", last, b"", epoch=epoch, now=1.0, counts={"steps.count": 1})
    cloud.config = migrated(cloud, newer)
    assert cloud.open().learner.replayable == 8 + (10 + 32)


def test_a_worker_of_the_old_base_commits_nothing_more(cloud: Cloud, newer: Path) -> None:
    cloud.send(32)
    turn = Turn(cloud.store, "north", lambda: open_cohort(cloud.store, cloud.config, cloud.cohort))
    assert turn.once()
    migrated(cloud, newer, again=32)
    before = cloud.store.status("north")["cursor"]
    assert not turn.once()
    assert turn.failure is None  # a new process would change nothing
    status = cloud.store.status("north")
    assert status["cursor"] == before
    assert "migrated to base model" in status["worker"]["error"]
    with pytest.raises(OtherBase):
        cloud.open()


def test_a_migration_in_the_middle_of_a_step_undoes_the_step(
    cloud: Cloud, newer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cloud.send(32)
    turn = Turn(cloud.store, "north", lambda: open_cohort(cloud.store, cloud.config, cloud.cohort))
    learn: Callable[..., object] = CohortWorker._test_then_train

    def slow(self: CohortWorker, *args: object) -> object:
        migrated(cloud, newer)
        return learn(self, *args)

    monkeypatch.setattr(CohortWorker, "_test_then_train", slow)
    assert not turn.once()
    assert turn.failure is None
    assert cloud.store.claim("north").checkpoint is None
    assert cloud.store.status("north")["cursor"] == 0


def test_a_cohort_that_waits_for_its_configuration_fills_no_log(
    cloud: Cloud, newer: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    opener = Opener(
        cloud.store, cloud.config, cloud.cohort, open_signers(cloud.config.signers), lambda: cloud.config
    )
    turn = Turn(cloud.store, "north", opener, clock=clock)
    drain(turn._worker)  # type: ignore[arg-type]
    migrated(cloud, newer)
    for _ in range(50):
        assert not turn.once()
        clock.now += 3.0
    assert len([record for record in caplog.records if "set aside" in record.getMessage()]) == 2
    # Back at the first base, the configuration of before is right again.
    back = Migration(
        old=Bundle.load(newer / "bundle").manifest.base,
        new=Bundle.load(Path(cloud.cohort.bundle)).manifest.base,
        serial=2,
        notice=b"{}",
    )
    cloud.store.migrate("north", back, actor="ann", now=cloud.now)
    assert not turn.once()  # nothing to do, but it works
    assert cloud.store.status("north")["worker"]["ready"]


def test_a_worker_that_runs_goes_on_once_the_configuration_is_the_new_one(cloud: Cloud, newer: Path) -> None:
    cloud.send(32)
    drain(cloud.open())
    configured = [cloud.config]
    stop, working = threading.Event(), threading.Event()
    worker = threading.Thread(
        target=run, args=(cloud.config, stop, working), kwargs={"reread": lambda: configured[0]}
    )
    worker.start()
    try:
        assert working.wait(60)
        new = migrated(cloud, newer, again=32)
        done = threading.Event()
        while worker.is_alive() and not done.wait(0.02):
            report = cloud.store.status("north")["worker"]
            if "error" in report:
                configured[0] = new
            if report["ready"] and not cloud.store.backlog("north").samples:
                done.set()
    finally:
        stop.set()
        worker.join()
    assert done.is_set()
    assert cloud.store.claim("north").checkpoint is not None
