"""What the worker does when an operator acts."""

from __future__ import annotations

import numpy as np
import pytest
from worker_cloud import Cloud, cloud, drain

from cema.cloud.store.base import PublishedUpdate
from cema.cloud.store.control import Act, Pause, Pin, Resume, Rollback, Stop
from cema.cloud.worker.cohort import CohortWorker
from cema.formats.bundle import Bundle
from cema.formats.payload import decode_payload
from cema.formats.update import verify_payload, verify_update

__all__ = ["cloud"]


def act(cloud: Cloud, act: Act) -> int:
    return cloud.store.act("north", act, actor="ann", now=cloud.now).number


def latest(cloud: Cloud) -> PublishedUpdate:
    update = cloud.store.latest_update("north")
    assert update is not None
    return update


def published(cloud: Cloud, samples: int = 160) -> CohortWorker:
    """Return a worker that has published several versions of different content."""
    cloud.publish(every_steps=1, min_seconds=0)
    worker = cloud.open()
    cloud.send(samples)
    drain(worker)
    assert latest(cloud).version >= 3
    return worker


def more(cloud: Cloud, worker: CohortWorker, samples: int = 48) -> None:
    cloud.now += 5
    cloud.send(samples)
    drain(worker)


def test_while_publishing_is_paused_it_learns_and_publishes_nothing(cloud: Cloud) -> None:
    worker = published(cloud)
    before, steps = latest(cloud), worker.learner.steps
    act(cloud, Pause())
    more(cloud, worker)
    assert worker.learner.steps == steps + 3
    assert latest(cloud) == before
    # What devices have is signed anew all the same, before it expires.
    cloud.now += 20 * 86_400
    drain(worker)
    assert (latest(cloud).version, latest(cloud).digest) == (before.version + 1, before.digest)
    act(cloud, Resume())
    more(cloud, worker)
    assert latest(cloud).version > before.version + 1
    assert latest(cloud).digest != before.digest


@pytest.mark.parametrize("again", [Pin(to=1), Rollback(to=1)])
def test_earlier_content_goes_out_under_the_next_number(cloud: Cloud, again: Pin | Rollback) -> None:
    worker = published(cloud)
    old = next(v for v in cloud.store.versions("north") if v.version == 1)
    newest = latest(cloud).version
    number = act(cloud, again)
    assert drain(worker) >= 1
    update = latest(cloud)
    assert (update.version, update.digest) == (newest + 1, old.digest)
    bundle = Bundle.load(cloud.folder / "bundle")
    manifest = verify_update(
        update.envelope,
        public_keys=bundle.public_keys,
        cohort="north",
        base=bundle.manifest.base,
        running_version=newest,
        now=cloud.now,
    )
    verify_payload(manifest, update.payload)
    done = cloud.store.acts("north")[0]
    assert (done.number, done.state, done.version) == (number, "done", newest + 1)
    trace = cloud.store.trace("north", newest + 1)
    assert trace is not None
    kind = "pin" if isinstance(again, Pin) else "rollback"
    assert (trace["kind"], trace["content_of"], trace["act"]) == (kind, 1, number)
    steps = worker.learner.steps
    more(cloud, worker, 160)
    if isinstance(again, Pin):
        assert latest(cloud) == update
        assert worker.learner.steps == steps + 10
    else:  # it has begun anew, and goes on
        assert steps == 0
        assert latest(cloud).version > update.version
        assert cloud.store.trace("north", latest(cloud).version)["kind"] == "learned"  # type: ignore[index]


def test_in_an_emergency_devices_get_the_source_model(cloud: Cloud) -> None:
    worker = published(cloud)
    act(cloud, Stop())
    drain(worker)
    update = latest(cloud)
    bundle = Bundle.load(cloud.folder / "bundle")
    source = bundle.affine_state()
    state = decode_payload(update.payload).norm_state
    for key, value in source.items():
        np.testing.assert_allclose(state[key], value, atol=2e-3)
    more(cloud, worker, 160)
    assert latest(cloud) == update
    act(cloud, Resume())
    more(cloud, worker, 160)
    assert latest(cloud).version > update.version


def test_before_the_first_version_too(cloud: Cloud) -> None:
    worker = cloud.open()
    act(cloud, Stop())
    drain(worker)
    assert latest(cloud).version == 1
    more(cloud, worker, 160)
    assert latest(cloud).version == 1


def test_content_that_devices_have_is_not_signed_again(cloud: Cloud) -> None:
    worker = published(cloud)
    newest = latest(cloud)
    act(cloud, Pin(to=newest.version))
    more(cloud, worker)
    assert latest(cloud) == newest
    assert cloud.store.acts("north")[0].version == newest.version


def test_an_act_in_the_middle_of_a_step_keeps_what_the_step_would_publish_back(cloud: Cloud) -> None:
    worker = published(cloud)
    before = latest(cloud)
    commit = worker.commit

    def act_first(*arguments: object, **named: object) -> None:
        worker.commit = commit  # type: ignore[method-assign]
        act(cloud, Pause())
        commit(*arguments, **named)  # type: ignore[arg-type]

    worker.commit = act_first  # type: ignore[method-assign]
    epoch = worker.epoch
    more(cloud, worker)
    assert worker.epoch == epoch + 1, "it went back to the step before"
    assert latest(cloud) == before
    assert cloud.store.backlog("north").samples == 0, "and made the step again"


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.mark.parametrize("wanted", [Pin(to=1), Rollback(to=1), Stop()])
@pytest.mark.parametrize("after", [False, True], ids=["before-the-commit", "after-the-commit"])
def test_an_act_survives_a_kill_and_is_done_once(cloud: Cloud, wanted: Act, after: bool) -> None:
    worker = published(cloud)
    newest = latest(cloud).version
    act(cloud, wanted)
    commit = cloud.store.commit_step

    def die(*arguments: object, **named: object) -> None:
        if after:
            commit(*arguments, **named)  # type: ignore[arg-type]
        raise Killed

    cloud.store.commit_step = die  # type: ignore[method-assign]
    with pytest.raises(Killed):
        worker.run_once()
    cloud.store.commit_step = commit  # type: ignore[method-assign]
    drain(cloud.open())
    assert latest(cloud).version == newest + 1
    (done,) = cloud.store.acts("north")
    assert (done.state, done.version) == ("done", newest + 1)


def test_content_that_was_deleted_fails_the_act_and_nothing_else(cloud: Cloud) -> None:
    worker = published(cloud)
    before = latest(cloud)
    act(cloud, Pin(to=1))
    with cloud.store.database.write() as connection:  # an older CEMA knows no acts
        connection.execute("DELETE FROM updates WHERE version = 1")
        connection.execute("DELETE FROM artifacts WHERE digest NOT IN (SELECT digest FROM updates)")
    drain(worker)
    assert cloud.store.acts("north")[0].state == "failed"
    assert latest(cloud) == before
    assert cloud.store.waiting_act("north") is None
