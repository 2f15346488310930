"""What acts on devices mean to a device that talks to the cloud, over real HTTP."""

from __future__ import annotations

import logging
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from cloud_client import Cloud, refused
from cloud_process import eventually
from cloud_support import StillEngine, make_samples, serving
from cloud_tiny_models import quadrants

from cema.cloud.config import CloudConfig
from cema.cloud.http import tokens
from cema.cloud.store.activity import activity_of
from cema.cloud.store.fleet import (
    DeviceAct,
    Expire,
    FleetRegister,
    Move,
    Quarantine,
    Remove,
    Renew,
    Revoke,
    fleet_of,
)
from cema.edge.agent import EdgeAgent
from cema.edge.config import CloudLink, EdgeConfig, UpdateConfig, UploadConfig
from cema.errors import StoreError
from cema.formats.sample import encode_samples

LATEST = "/v1/cohorts/north/updates/latest"


def fleet(cloud: Cloud) -> FleetRegister:
    return fleet_of(cloud.engine.devices)


def test_both_tokens_work_while_they_overlap_and_the_use_of_the_new_one_is_noted(cloud: Cloud) -> None:
    old = cloud.token
    new = fleet(cloud).act("cam", Renew(overlap=3600.0)).token
    assert new is not None
    assert cloud.get(LATEST, token=old).status_code == 204
    assert cloud.get("/v1/cohorts/north/status", token=new).status_code == 200
    assert {d.name: d.taken_at for d in fleet(cloud).list()}["cam"] is None, "only its own work counts"
    assert cloud.get(LATEST, token=new).status_code == 204
    eventually(lambda: {d.name: d.taken_at for d in fleet(cloud).list()}["cam"] is not None)
    # Now the new one is the device's: a further renewal ends the oldest.
    third = fleet(cloud).act("cam", Renew(overlap=3600.0)).token
    assert third is not None
    refused(cloud.get(LATEST, token=old), 401, "unauthorized")
    for token in (new, third):
        assert cloud.get(LATEST, token=token).status_code == 204
    # The end of the overlap, seen from after it.
    last = fleet(cloud).act("cam", Renew(overlap=60.0), now=time.time() - 61).token
    for token in (new, third):
        refused(cloud.get(LATEST, token=token), 401, "unauthorized")
    assert cloud.get(LATEST, token=last).status_code == 204


@pytest.mark.parametrize(
    ("act", "status", "code", "remedy"),
    [
        (Expire(at=5.0), 403, "expired", "cema device expire cam --at 90d"),
        (Revoke(), 403, "revoked", "new name"),
        (Remove(), 401, "unauthorized", "token"),
        (Move(to="south"), 403, "wrong_cohort", "set cloud.cohort to 'south' in the device's configuration"),
    ],
)
def test_an_act_holds_from_the_next_request_on_and_the_error_says_what_to_do(
    cloud: Cloud, act: DeviceAct, status: int, code: str, remedy: str
) -> None:
    assert len(cloud.send(make_samples(2))) == 2
    fleet(cloud).act("cam", act)
    for response in (cloud.get(LATEST), cloud.post(encode_samples(make_samples(2, seed=1)))):
        assert remedy in refused(response, status, code)["remedy"]
    assert cloud.store.backlog("north").samples == 2, "what it has sent stays"


def test_a_device_that_was_given_more_time_goes_on(cloud: Cloud) -> None:
    fleet(cloud).act("cam", Expire(at=5.0))
    assert "1970-01-01 00:00:05" in refused(cloud.get(LATEST), 403, "expired")["message"]
    fleet(cloud).act("cam", Expire(at=time.time() + 3600))
    assert cloud.get(LATEST).status_code == 204
    fleet(cloud).act("ops", Expire(at=5.0))
    refused(cloud.get("/metrics", token=cloud.operator), 403, "expired")


def test_the_log_says_once_a_day_that_a_device_expires_soon(
    cloud: Cloud, caplog: pytest.LogCaptureFixture
) -> None:
    fleet(cloud).act("cam", Expire(at=time.time() + 3.5 * 86_400))
    far = fleet_of(cloud.engine.devices).act("far", Expire(at=time.time() + 90 * 86_400))
    assert far.device is not None
    with caplog.at_level(logging.WARNING, logger=tokens.__name__):
        for _ in range(3):
            cloud.get(LATEST)
            cloud.get("/v1/cohorts/south/updates/latest", token=cloud.southern)
    assert [record.getMessage() for record in caplog.records] == ["device cam: its token expires in 3.5 days"]


def test_a_use_that_cannot_be_noted_holds_nothing_up(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise StoreError("no room")

    new = fleet(cloud).act("cam", Renew(overlap=3600.0)).token
    monkeypatch.setattr(type(cloud.engine.devices), "note_taken", fails)
    assert cloud.get(LATEST, token=new).status_code == 204
    eventually(lambda: "no room" in caplog.text)


def test_a_quarantined_device_sends_and_gets_updates(cloud: Cloud) -> None:
    fleet(cloud).act("cam", Quarantine())
    cloud.publish(1, b"payload")
    assert {verdict for _, verdict in cloud.send(make_samples(3))} == {"stored"}
    assert cloud.get(LATEST).status_code == 200


def test_a_removed_device_leaves_no_activity_behind(cloud: Cloud) -> None:
    cloud.send(make_samples(1))
    assert "cam" in activity_of(cloud.store)
    fleet(cloud).act("cam", Remove())
    assert "cam" not in activity_of(cloud.store)
    token = cloud.engine.devices.add("cam", cohort="south")
    assert cloud.get("/v1/cohorts/south/updates/latest", token=token).status_code == 204


class Moved:
    """A device with samples in its spool, and a cloud of two cohorts that share a bundle."""

    def __init__(self, factory: Path, folder: Path) -> None:
        shutil.copytree(factory, folder, dirs_exist_ok=True)
        self.folder = folder
        config = folder / "cloud.toml"
        head, north = config.read_text().split("[[cohort]]")
        config.write_text(f"{head}[[cohort]]{north}[[cohort]]{north.replace('north', 'south')}")
        self.engine = StillEngine(CloudConfig.load(config))
        self.token = self.engine.devices.add("cam", cohort="north")

    def agent(self, url: str, cohort: str, *, linger: float = 0.0) -> EdgeAgent:
        return EdgeAgent(
            EdgeConfig(
                bundle=str(self.folder / "bundle"),
                state=str(self.folder / "state"),
                cloud=CloudLink(url=url, cohort=cohort, token=self.token),
                upload=UploadConfig(linger_seconds=linger),
                update=UpdateConfig(poll_seconds=0.2),
            )
        )


@pytest.fixture
def moved(factory: Path, tmp_path: Path) -> Moved:
    return Moved(factory, tmp_path / "f")


def test_a_moved_device_keeps_its_samples_until_its_configuration_names_the_new_cohort(moved: Moved) -> None:
    with serving(moved.engine) as url:
        store = moved.engine.store
        images, _ = quadrants(64, 1, drift=True)
        with moved.agent(url, "north", linger=3600.0) as agent:  # what it selects waits in the spool
            agent.predict(images)
            eventually(lambda: agent.status().spooled > 0)
            waiting = agent.status().spooled
        fleet_of(moved.engine.devices).act("cam", Move(to="south"))
        with moved.agent(url, "north") as agent:
            eventually(lambda: agent.status().last_error)
            error = agent.status().last_error or ""
            assert "'cam' belongs to cohort 'south', not 'north'" in error
            assert "set cloud.cohort to 'south' in the device's configuration" in error
            assert "revoked" not in error
            more, _ = quadrants(64, 2, drift=True)
            assert agent.predict(more).logits.shape == (64, 4), "it predicts on"
            eventually(lambda: agent.status().queued == 0)
            assert agent.status().spooled >= waiting
            assert agent.status().dropped == {}
        with moved.agent(url, "south") as agent:
            eventually(lambda: agent.status().spooled == agent.status().queued == 0)
            assert agent.status().last_error is None
            assert agent.status().dropped == {}
        assert store.backlog("north").samples == 0
        assert store.backlog("south").samples >= waiting
        assert activity_of(store)["cam"].cohort == "south"


def test_a_device_that_changes_its_token_file_goes_on_without_a_gap(moved: Moved) -> None:
    with serving(moved.engine) as url:
        file = moved.folder / "cam.token"
        file.write_text(moved.token)
        new = fleet_of(moved.engine.devices).act("cam", Renew(overlap=3600.0)).token
        assert new is not None
        cloud = CloudLink(url=url, cohort="north", token_file=str(file))
        config = EdgeConfig(
            bundle=str(moved.folder / "bundle"),
            state=str(moved.folder / "state"),
            cloud=cloud,
            update=UpdateConfig(poll_seconds=0.05),
        )
        heard = lambda: activity_of(moved.engine.store).get("cam")  # noqa: E731
        taken = lambda: fleet_of(moved.engine.devices).list()[0].taken_at  # noqa: E731
        with EdgeAgent(config) as agent:
            agent.predict(quadrants(32, 1, drift=True)[0])
            eventually(heard)
            assert taken() is None
            file.write_text(new)
            eventually(taken)
            assert agent.status().last_error is None
