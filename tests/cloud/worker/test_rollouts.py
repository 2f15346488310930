"""How the worker lets versions come to devices."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from cloud_support import samples_of
from cloud_tiny_models import quadrants
from worker_cloud import Cloud, cloud, drain

from cema.cloud.rollout_config import RolloutConfig, StopConfig
from cema.cloud.store.activity import Poll
from cema.cloud.store.control import Canary, Pause, Pin, Release, Resume, Rollback, Stop
from cema.cloud.store.offers import Rollout
from cema.cloud.store.reports import Reported
from cema.cloud.worker.cohort import CohortWorker
from cema.formats.report import DeviceReport, Refused, Served

__all__ = ["cloud"]

DEVICES = [f"d{i}" for i in range(5)]


def configure(cloud: Cloud, **values: Any) -> None:
    cloud.publish(every_steps=1, min_seconds=0, lifetime_days=30)
    config = RolloutConfig(**({"mode": "canary", "first": 0.2, "wait": 60.0} | values))
    cloud._replace(rollout=config)
    for device in DEVICES:
        cloud.store.devices(["north"]).add(device, cohort="north")
    heard_of(cloud)


def heard_of(cloud: Cloud, *devices: str) -> None:
    cloud.store.note_polls([Poll("north", device, cloud.now, None) for device in devices or DEVICES])


def rollout(cloud: Cloud) -> Rollout:
    found = cloud.store.rollout("north")
    assert found is not None
    return found


def tell(cloud: Cloud, device: str, version: int, number: int = 1, **members: Any) -> None:
    served = members.pop("served", {"predicted": 100, "entropy": 0.2})
    report = DeviceReport(boot="0" * 16, number=number, serving=Served(version=version, **served), **members)
    cloud.store.note_reports([Reported("north", device, cloud.now, report)])


def offered(cloud: Cloud) -> dict[str, int]:
    tags = {device: cloud.store.offered_tag("north", device) for device in DEVICES}
    return {device: tag.version if tag else 0 for device, tag in tags.items()}


def tried(cloud: Cloud, **values: Any) -> tuple[CohortWorker, str]:
    """Return a worker whose first version is tried by one canary device, and that device."""
    configure(cloud, **values)
    worker = cloud.open()
    cloud.send(160)
    drain(worker)
    found = rollout(cloud)
    assert (found.state, found.version, found.before) == ("open", 1, 0)
    (device,) = found.devices
    return worker, device


def test_an_operator_sets_the_share_of_canary_devices_from_the_next_version_on(cloud: Cloud) -> None:
    worker, device = tried(cloud)
    cloud.store.act("north", Canary(first=0.6), actor="ann", now=cloud.now)
    cloud.now += 61
    tell(cloud, device, 1)
    heard_of(cloud)
    drain(worker)
    assert (rollout(cloud).state, rollout(cloud).devices) == ("released", (device,))
    heard_of(cloud)
    while rollout(cloud).version == 1:
        cloud.now += 2
        cloud.send(64)
        drain(worker)
    second = rollout(cloud)
    assert (second.state, len(second.devices)) == ("open", 3)
    assert second.devices[0] == device, "the same devices come first"
    cloud.store.act("north", Canary(), actor="ann", now=cloud.now)
    worker = cloud.open()
    assert worker._rollouts._first() == 0.2


def test_a_version_goes_to_canary_devices_first_and_then_to_all(cloud: Cloud) -> None:
    worker, device = tried(cloud)
    assert offered(cloud) == {name: int(name == device) for name in DEVICES}
    cloud.now += 30
    cloud.send(64)
    drain(worker)
    assert rollout(cloud).version == 1, "it waits: nothing newer goes out meanwhile"
    tell(cloud, device, 1)
    cloud.now += 31
    drain(worker)
    assert (rollout(cloud).state, rollout(cloud).ended) == ("released", cloud.now)
    assert set(offered(cloud).values()) == {1}
    cloud.now += 1
    cloud.send(160)
    drain(worker)
    assert (rollout(cloud).version, rollout(cloud).before) == (2, 1)
    assert rollout(cloud).entropy == {device: 0.2}


def test_a_version_that_a_canary_device_does_badly_with_is_taken_back(
    cloud: Cloud, caplog: pytest.LogCaptureFixture
) -> None:
    worker, device = tried(cloud)
    tell(cloud, device, 1)
    cloud.now += 61
    drain(worker)
    first = cloud.store.for_all("north")
    assert first is not None
    cloud.send(160)
    drain(worker)
    assert rollout(cloud).version == 2
    cloud.now += 5
    tell(cloud, device, 2, 2, served={"predicted": 100, "guarded": 90})
    drain(worker)
    found = rollout(cloud)
    assert (found.state, found.reasons) == ("taken_back", {device: "guarded 90% of 100 images"})
    back = cloud.store.for_all("north")
    assert back is not None
    assert (back.version, back.digest) == (3, first.digest)
    assert set(offered(cloud).values()) == {3}
    assert worker.learner.steps == 0, "what was learned spoiled the device"
    trace = cloud.store.trace("north", 3)
    assert trace is not None
    assert (trace["kind"], trace["content_of"]) == ("taken back", 1)
    assert f"version 2 is taken back: {device} guarded 90%" in caplog.text
    assert cloud.store.newest_audit(1)[0].act.name == "cohort.take_back"
    # And it goes on.
    cloud.now += 5
    cloud.send(160)
    drain(worker)
    assert (rollout(cloud).version, rollout(cloud).before) == (4, 3)


def test_before_the_first_version_for_all_the_source_model_goes_out(cloud: Cloud) -> None:
    worker, device = tried(cloud)
    tell(cloud, device, 0, refused=Refused(version=1, reason="golden_mismatch"))
    cloud.now += 5
    drain(worker)
    update = cloud.store.for_all("north")
    assert update is not None
    assert (update.version, update.payload) == (2, worker.publisher.source_payload())


def test_samples_of_canary_devices_that_disagree_spoil_it(cloud: Cloud) -> None:
    worker, device = tried(cloud, stop_if=StopConfig(agreement=0.1))
    tell(cloud, device, 1)
    cloud.now += 61
    images, labels = quadrants(96, 77, drift=True)
    right = [
        msgspec.structs.replace(sample, version=1, label=int(label))
        for sample, label in zip(samples_of(images), labels, strict=True)
    ]
    cloud.store.put("north", right, device="d0", now=cloud.now, max_backlog=10**6)
    drain(worker)
    assert rollout(cloud).version == 2
    images, labels = quadrants(96, 78, drift=True)
    wrong = [
        msgspec.structs.replace(sample, version=2, label=(int(label) + 1) % 4)
        for sample, label in zip(samples_of(images), labels, strict=True)
    ]
    cloud.store.put("north", wrong, device=device, now=cloud.now, max_backlog=10**6)
    drain(worker)
    cloud.now += 5
    drain(worker)
    assert rollout(cloud).state == "taken_back"
    assert rollout(cloud).reasons[device].startswith("agreement")


def test_where_no_device_was_heard_of_lately_it_goes_to_all(cloud: Cloud) -> None:
    configure(cloud)
    cloud.now += 2 * 86_400
    worker = cloud.open()
    cloud.send(160)
    drain(worker)
    assert cloud.store.rollout("north") is None
    assert set(offered(cloud).values()) != {0}


def test_another_device_takes_the_place_of_one_that_is_silent(cloud: Cloud) -> None:
    worker, device = tried(cloud)
    cloud.now += 59
    heard_of(cloud, *(name for name in DEVICES if name != device))
    drain(worker)
    assert rollout(cloud).devices == (device,)
    cloud.now += 2
    drain(worker)
    old, new = rollout(cloud).devices
    assert old == device
    assert offered(cloud) == {name: int(name in {old, new}) for name in DEVICES}
    tell(cloud, new, 1)
    cloud.now += 61
    drain(worker)
    assert rollout(cloud).state == "released"


def test_a_manual_version_waits_for_its_release(cloud: Cloud) -> None:
    configure(cloud, mode="manual")
    worker = cloud.open()
    cloud.send(160)
    drain(worker)
    assert (rollout(cloud).mode, set(offered(cloud).values())) == ("manual", {0})
    cloud.now += 61
    cloud.send(64)
    drain(worker)
    newer = rollout(cloud).version
    assert newer == 2, "a newer one takes its place after a while"
    cloud.store.act("north", Release(to=newer), actor="ann", now=cloud.now)
    assert set(offered(cloud).values()) == {newer}
    drain(worker)
    assert worker.publisher.version == newer
    cloud.now += 1
    cloud.send(160)
    drain(worker)
    assert rollout(cloud).before == newer


@pytest.mark.parametrize("act", [Rollback(to=1), Pin(to=1), Stop()])
def test_an_act_of_an_operator_ends_an_open_rollout(cloud: Cloud, act: Rollback | Pin | Stop) -> None:
    worker, device = tried(cloud)
    tell(cloud, device, 1)
    cloud.now += 61
    drain(worker)
    cloud.send(160)
    drain(worker)
    assert rollout(cloud).version == 2
    cloud.store.act("north", act, actor="ann", now=cloud.now)
    drain(worker)
    assert rollout(cloud).state == "superseded"
    assert set(offered(cloud).values()) == {3}


def test_while_publishing_is_paused_nothing_is_released_but_all_the_same_taken_back(cloud: Cloud) -> None:
    worker, device = tried(cloud)
    cloud.store.act("north", Pause(), actor="ann", now=cloud.now)
    tell(cloud, device, 1)
    cloud.now += 61
    drain(worker)
    assert rollout(cloud).state == "open"
    tell(cloud, device, 1, 2, served={"predicted": 100, "guarded": 100})
    cloud.now += 5
    drain(worker)
    assert rollout(cloud).state == "taken_back"


def test_a_pause_in_the_middle_of_a_release_keeps_it_back(cloud: Cloud) -> None:
    worker, device = tried(cloud)
    tell(cloud, device, 1)
    cloud.now += 61
    commit = worker.commit

    def act_first(*arguments: Any, **named: Any) -> None:
        worker.commit = commit  # type: ignore[method-assign]
        cloud.store.act("north", Pause(), actor="ann", now=cloud.now)
        commit(*arguments, **named)

    worker.commit = act_first  # type: ignore[method-assign]
    drain(worker)
    assert (rollout(cloud).state, offered(cloud)[device]) == ("open", 1)
    assert set(offered(cloud).values()) == {0, 1}
    cloud.store.act("north", Resume(), actor="ann", now=cloud.now)
    cloud.now += 5
    drain(worker)
    assert (rollout(cloud).state, set(offered(cloud).values())) == ("released", {1})


@pytest.mark.parametrize("bad", [False, True], ids=["release", "take-back"])
@pytest.mark.parametrize("after", [False, True], ids=["before-the-commit", "after-the-commit"])
def test_a_rollout_survives_a_kill(cloud: Cloud, bad: bool, after: bool) -> None:
    class Killed(BaseException):
        pass

    worker, device = tried(cloud)
    tell(cloud, device, 1, served={"predicted": 100, "guarded": 100 * bad})
    cloud.now += 61
    commit = cloud.store.commit_step

    def die(*arguments: object, **named: object) -> None:
        if after:
            commit(*arguments, **named)  # type: ignore[arg-type]
        raise Killed

    cloud.store.commit_step = die  # type: ignore[method-assign]
    with pytest.raises(Killed):
        worker.run_once()
    cloud.store.commit_step = commit  # type: ignore[method-assign]
    worker = cloud.open()
    drain(worker)
    assert rollout(cloud).state == ("taken_back" if bad else "released")
    assert set(offered(cloud).values()) == {2 if bad else 1}
    assert worker.publisher.version == (2 if bad else 1)


def test_a_pinned_device_keeps_its_content_and_follows_again_after_resume(cloud: Cloud) -> None:
    configure(cloud, mode="immediate")
    worker = cloud.open()
    cloud.send(160)
    drain(worker)
    one = cloud.store.update("north", 1)
    newest = worker.publisher.version
    assert one is not None
    assert newest >= 3
    cloud.store.act("north", Pin(to=1, device="d1"), actor="ann", now=cloud.now)
    drain(worker)
    assert worker.publisher.version == newest, "all others go on as they were"
    assert offered(cloud) == {name: newest + (name == "d1") for name in DEVICES}
    tag = cloud.store.offered_tag("north", "d1")
    assert tag is not None
    assert tag.digest == one.digest
    cloud.now += 5
    cloud.send(48)
    drain(worker)
    assert offered(cloud)["d1"] == newest + 1
    assert offered(cloud)["d2"] >= newest + 2
    # It is signed anew before it expires, as what all others have is.
    cloud.now += 20 * 86_400
    drain(worker)
    pinned = cloud.store.offered("north", "d1")
    assert pinned is not None
    assert (pinned.digest, pinned.created) == (one.digest, cloud.now)
    before = worker.publisher.version
    cloud.store.act("north", Resume(device="d1"), actor="ann", now=cloud.now)
    drain(worker)
    assert offered(cloud)["d1"] > pinned.version
    tag, others = cloud.store.offered_tag("north", "d1"), cloud.store.for_all("north")
    assert tag is not None
    assert others is not None
    assert (tag.digest, others.version) == (others.digest, before)


def test_after_a_restart_the_next_number_is_above_those_of_some_devices(cloud: Cloud) -> None:
    configure(cloud, mode="immediate")
    worker = cloud.open()
    cloud.send(160)
    drain(worker)
    cloud.store.act("north", Pin(to=1, device="d1"), actor="ann", now=cloud.now)
    drain(worker)
    used = offered(cloud)["d1"]
    worker = cloud.open()
    assert worker.publisher.next_version == used + 1
    cloud.now += 5
    cloud.send(48)
    drain(worker)
    assert cloud.store.update("north", used + 1) is not None
    assert offered(cloud)["d2"] >= used + 1
