"""Operators look at one version: what it changed, and who has it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx2
import numpy as np
from cloud_client import auth, refused
from cloud_support import serving
from worker_cloud import Cloud, cloud, drain

from cema.cloud.config import CloudConfig
from cema.cloud.store.activity import Poll
from cema.cloud.store.control import Pin
from cema.cloud.store.reports import Reported
from cema.cloud.store.sqlite import SqliteStore
from cema.formats.bundle import Bundle
from cema.formats.payload import decode_payload
from cema.formats.report import DeviceReport, Served

__all__ = ["cloud"]


class Serving:
    """The store of a worker, served."""

    def __init__(self, cloud: Cloud) -> None:
        self.config: CloudConfig = cloud.config
        self.store: SqliteStore = cloud.store
        self.devices = cloud.store.devices(["north"])

    def start(self) -> None:
        """Nothing to start."""

    def stop(self) -> None:
        """The worker's tests close the store."""

    def healthy(self) -> bool:
        return True


def publish(cloud: Cloud, versions: int) -> None:
    worker = cloud.open()
    while worker.publisher.version < versions:
        cloud.send(16)
        cloud.now += 3
        drain(worker)


def test_a_version_says_what_it_changed_and_who_has_it(cloud: Cloud) -> None:
    publish(cloud, 3)
    engine = Serving(cloud)
    names = ("cam-1", "cam-2", "cam-3", "cam-4")
    for name in names:
        engine.devices.add(name, cohort="north")
    # One that came from another cohort has still said of that one alone what it runs.
    engine.devices.add("moved", cohort="north")
    engine.devices.add("gone", cohort="north")
    engine.devices.revoke("gone")
    operator = engine.devices.add("ops", cohort=None, role="operator")
    polls = [Poll("north", name, 5.0, version) for name, version in zip(names, (3, 3, 2, 1), strict=True)]
    cloud.store.note_polls([*polls, Poll("north", "gone", 5.0, 3), Poll("south", "moved", 5.0, 3)])
    serving_3 = DeviceReport(boot="a" * 16, number=1, serving=Served(version=3))
    cloud.store.note_reports(
        [
            Reported("north", "cam-1", 5.0, serving_3),
            Reported("north", "gone", 5.0, serving_3),
            Reported("south", "moved", 5.0, serving_3),
        ]
    )
    cloud.store.act("north", Pin(to=1, device="cam-4"), actor="ann", now=5.0)
    drain(cloud.open())  # gives it the content of version 1 under a new number
    with serving(engine) as url, httpx2.Client(base_url=url, headers=auth(operator)) as http:

        def read(version: int) -> dict[str, Any]:
            found = http.get(f"/v1/cohorts/north/versions/{version}")
            assert (found.status_code, found.headers["cache-control"]) == (200, "no-store")
            told: dict[str, Any] = found.json()
            return told

        listed = {one["version"]: one for one in http.get("/v1/cohorts/north/versions").json()["versions"]}
        third = read(3)
        assert third["adoption"] == {"offered": 4, "has": 2, "runs": 1}
        assert read(4)["adoption"] == {"offered": 1, "has": 0, "runs": 0}
        assert read(1)["adoption"] == {"offered": 0, "has": 1, "runs": 0}
        assert {name: third[name] for name in listed[3]} == listed[3]
        assert third["trace"]["predictions"]["classes"] == 4
        check_moved(cloud, third)
        assert read(1)["moved_since"] is None
        back = read(4)
        assert back["trace"]["kind"] == "pin"
        assert (back["moved"], back["class_names"]) == (read(1)["moved"], None)
        refused(http.get("/v1/cohorts/north/versions/9"), 404, "unknown_version")
        for wrong in ("0", "-1", "newest", str(2**60)):
            refused(http.get(f"/v1/cohorts/north/versions/{wrong}"), 400, "invalid_request")
        places = http.get("/v1/cohorts/north/domains").json()
    assert [point["version"] for point in places["points"]] == [1, 2, 3]
    assert places["source"] is None
    assert 0 < places["explained"][0] <= 1
    assert len(places["statistics"]) == len(cloud.store.trace("north", 1)["domain"])  # type: ignore[index]
    assert places["statistics"][:2] == ["brightness", "contrast"]


def check_moved(cloud: Cloud, told: dict[str, Any]) -> None:
    """Compare what is told with the arithmetic done anew."""
    bundle = Bundle.load(Path(cloud.cohort.bundle))
    update, before = cloud.store.update("north", 3), cloud.store.update("north", 2)
    assert update is not None
    assert before is not None
    now, earlier = decode_payload(update.payload), decode_payload(before.payload)
    assert now.unfolded
    for name, other in (("moved", bundle.affine_state()), ("moved_since", earlier.norm_state)):
        lengths = []
        for one in told[name]:
            key = one["name"].replace(".weight", ".scale").replace(".bias", ".shift")
            a, b = now.norm_state[key].astype(float), other[key].astype(float)
            assert one["size"] == a.size
            assert np.isclose(one["rms"], np.sqrt(np.mean((a - b) ** 2)))
            longest = max(np.linalg.norm(a), np.linalg.norm(b))
            assert np.isclose(one["relative"], np.linalg.norm(a - b) / longest)
            lengths.append(one["relative"])
        assert lengths == sorted(lengths, reverse=True)
        assert lengths[0] > 0
        assert len(lengths) == min(20, len(now.norm_state))


def test_a_bundle_that_is_another_or_gone_is_not_compared(cloud: Cloud) -> None:
    publish(cloud, 1)
    engine = Serving(cloud)
    operator = engine.devices.add("ops", cohort=None, role="operator")
    bundle = Path(cloud.cohort.bundle)
    with serving(engine) as url, httpx2.Client(base_url=url, headers=auth(operator)) as http:
        assert http.get("/v1/cohorts/north/versions/1").json()["moved"]
        bundle.rename(bundle.with_name("elsewhere"))
        told = http.get("/v1/cohorts/north/versions/1").json()
        assert (told["moved"], told["class_names"]) == (None, None)


def test_before_the_first_version_there_is_nothing(cloud: Cloud) -> None:
    engine = Serving(cloud)
    cloud.open()
    operator = engine.devices.add("ops", cohort=None, role="operator")
    with serving(engine) as url, httpx2.Client(base_url=url, headers=auth(operator)) as http:
        refused(http.get("/v1/cohorts/north/versions/1"), 404, "unknown_version")
        assert http.get("/v1/cohorts/north/domains").json() == {
            "points": [],
            "source": None,
            "explained": [0.0, 0.0],
            "statistics": [],
        }
