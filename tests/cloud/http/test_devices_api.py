"""Administrators add and change devices over HTTP, and operators list them."""

from __future__ import annotations

import time
from typing import Any

import httpx2
import pytest
from cloud_client import Cloud, auth, refused
from cloud_support import make_samples

from cema.cloud.store.activity import Poll
from cema.cloud.store.fleet import Quarantine, fleet_of
from cema.cloud.store.reports import Reported
from cema.cloud.store.traces import Fetch
from cema.formats.report import DeviceReport, Refused, Served

LATEST = "/v1/cohorts/north/updates/latest"


def send(cloud: Cloud, path: str, content: Any, *, token: str | None = None) -> httpx2.Response:
    return cloud.http.post(f"/v1/cohorts/{path}", json=content, headers=auth(token or cloud.admin))


def act(cloud: Cloud, name: str, kind: str, **members: Any) -> httpx2.Response:
    return send(cloud, f"north/devices/{name}/acts", {"type": kind, **members})


def listed(cloud: Cloud, cohort: str = "north", *, token: str | None = None) -> dict[str, dict[str, Any]]:
    response = cloud.get(f"/v1/cohorts/{cohort}/devices", token=token or cloud.operator)
    assert response.status_code == 200
    return {device["name"]: device for device in response.json()["devices"]}


@pytest.mark.parametrize("who", ["token", "operator", "northern_operator", "southern"])
def test_only_an_admin_changes_devices(cloud: Cloud, who: str) -> None:
    token = getattr(cloud, who)
    for path, content in (
        ("north/devices", {"devices": [{"name": "new"}]}),
        ("north/devices/cam/acts", {"type": "remove"}),
    ):
        assert send(cloud, path, content, token=token).status_code == 403
    assert listed(cloud).keys() == {"cam", "ops-north"}


def test_devices_are_added_all_or_none_and_their_tokens_work(cloud: Cloud) -> None:
    at = time.time() + 3600
    added = send(
        cloud,
        "north/devices",
        {
            "devices": [
                {"name": "one"},
                {"name": "two", "expires_at": at},
                {"name": "eve", "role": "operator"},
            ]
        },
    )
    assert added.status_code == 201
    tokens = {device["name"]: device["token"] for device in added.json()["devices"]}
    assert list(tokens) == ["one", "two", "eve"]
    for token in tokens.values():
        assert cloud.get(LATEST, token=token).status_code == 204
    assert listed(cloud)["two"]["expires_at"] == at
    assert cloud.get("/v1/cohorts/north/devices", token=tokens["eve"]).status_code == 200
    taken = send(cloud, "north/devices", {"devices": [{"name": "three"}, {"name": "one"}]})
    assert "'one'" in refused(taken, 409, "device_taken")["message"]
    assert "three" not in listed(cloud)
    twice = send(cloud, "north/devices", {"devices": [{"name": "four"}, {"name": "four"}]})
    refused(twice, 409, "device_taken")
    told = cloud.store.audit(limit=9)
    assert [(one.act.actor, one.act.name, one.act.subject) for one in told] == [
        ("token:boss", "device.add", name) for name in tokens
    ]
    assert not [token for token in tokens.values() if token in repr(told)]


@pytest.mark.parametrize(
    "content",
    [
        {"devices": []},
        {"devices": [{"name": "a b"}]},
        {"devices": [{"name": "new\n"}]},
        {"devices": [{"name": "new", "role": "admin"}]},
        {"devices": [{"name": "new", "expires_at": 1e300}]},
        {"devices": [{"name": f"d{i}"} for i in range(1001)]},
    ],
)
def test_what_may_not_be_added_is_refused(cloud: Cloud, content: Any) -> None:
    refused(send(cloud, "north/devices", content), 400, "invalid_request")
    assert listed(cloud).keys() == {"cam", "ops-north"}


def test_acts_do_over_http_what_they_do_at_the_command_line(cloud: Cloud) -> None:
    cloud.send(make_samples(3))
    renewed = act(cloud, "cam", "renew", overlap=3600).json()
    for token in (cloud.token, renewed["token"]):
        assert cloud.get(LATEST, token=token).status_code == 204
    assert renewed["device"]["older_token_until"] > time.time()
    assert act(cloud, "cam", "expire", at=5.0).json() == {
        "device": {**renewed["device"], "expires_at": 5.0},
        "token": None,
    }
    refused(cloud.get(LATEST), 403, "expired")
    act(cloud, "cam", "expire", at=None)
    limits = act(cloud, "cam", "limit", samples_per_hour=1).json()["device"]["limits"]
    assert limits["samples_per_hour"] == 1
    act(cloud, "cam", "limit", as_configured=True)
    assert act(cloud, "cam", "quarantine").json()["device"]["quarantined_by"] == "token:boss"
    cloud.store.put_report("north", {"ready": True, "quarantined": ["cam"]}, now=1.0)
    told = listed(cloud, token=cloud.northern_operator)["cam"]
    assert (told["quarantined_by"], told["quarantined_by_worker"], told["samples"]) == ("token:boss", True, 3)
    act(cloud, "cam", "release")
    assert act(cloud, "cam", "move", to="south").json()["device"]["cohort"] == "south"
    refused(act(cloud, "cam", "revoke"), 404, "unknown_device")
    assert "cam" in listed(cloud, "south")
    assert send(cloud, "south/devices/cam/acts", {"type": "revoke"}).json()["device"]["revoked_at"] > 0
    refused(send(cloud, "south/devices/cam/acts", {"type": "renew"}), 409, "act_refused")
    assert send(cloud, "south/devices/cam/acts", {"type": "remove"}).json() == {"device": None, "token": None}
    assert listed(cloud, "south").keys() == {"far"}
    assert {one.act.actor for one in cloud.store.audit(limit=20)} == {"token:boss"}


def test_an_admin_of_one_cohort_stays_in_it_and_nobody_makes_or_changes_admins(cloud: Cloud) -> None:
    northern = cloud.engine.devices.add("northern", cohort="north", role="admin")
    cloud.engine.devices.add("other", cohort="north", role="admin")

    def attempt(path: str, content: Any) -> httpx2.Response:
        return send(cloud, path, content, token=northern)

    refused(attempt("south/devices", {"devices": [{"name": "new"}]}), 403, "wrong_cohort")
    refused(attempt("south/devices/far/acts", {"type": "remove"}), 403, "wrong_cohort")
    refused(attempt("north/devices/far/acts", {"type": "remove"}), 404, "unknown_device")
    refused(attempt("north/devices/cam/acts", {"type": "move", "to": "south"}), 403, "wrong_cohort")
    refused(attempt("north/devices/cam/acts", {"type": "move", "to": "west"}), 404, "unknown_cohort")
    for kind in ("renew", "revoke", "remove"):
        refused(attempt("north/devices/other/acts", {"type": kind}), 409, "act_refused")
    refused(attempt("north/devices/ops/acts", {"type": "revoke"}), 404, "unknown_device")
    assert attempt("north/devices/ops-north/acts", {"type": "revoke"}).status_code == 200
    assert {device.name for device in cloud.engine.devices.list() if device.cohort == "south"} == {"far"}


def test_an_operator_s_list_is_of_its_cohort_alone(cloud: Cloud) -> None:
    fleet_of(cloud.engine.devices).act("far", Quarantine())
    refused(cloud.get("/v1/cohorts/south/devices", token=cloud.northern_operator), 403, "wrong_cohort")
    refused(cloud.get("/v1/cohorts/north/devices"), 403, "not_an_operator")
    assert listed(cloud).keys() == {"cam", "ops-north"}
    text = cloud.get("/metrics", token=cloud.operator).text
    assert 'cema_quarantined_devices{cohort="south"} 1.0' in text
    assert 'cema_quarantined_devices{cohort="north"} 0.0' in text


def page(cloud: Cloud, query: str) -> tuple[list[str], int]:
    response = cloud.get(f"/v1/cohorts/north/devices?{query}", token=cloud.operator)
    assert response.status_code == 200
    told = response.json()
    return [device["name"] for device in told["devices"]], told["total"]


def test_a_part_of_the_list_by_name_or_by_trouble(cloud: Cloud) -> None:
    for number in range(6):
        cloud.engine.devices.add(f"Yard-{number}", cohort="north")
    now = time.time()
    fleet_of(cloud.engine.devices).act("Yard-4", Quarantine())
    report = DeviceReport(
        boot="a" * 16, number=1, serving=Served(version=1), refused=Refused(version=2, reason="expired")
    )
    cloud.store.note_polls(
        [Poll("north", name, now - ago, 1) for name, ago in (("Yard-1", 5), ("Yard-2", 900), ("Yard-4", 900))]
    )
    cloud.store.note_reports([Reported("north", "Yard-5", now, report)])
    names = ["Yard-0", "Yard-1", "Yard-2", "Yard-3", "Yard-4", "Yard-5", "cam", "ops-north"]
    assert page(cloud, "") == (names, 8)
    assert page(cloud, "limit=3&offset=2") == (names[2:5], 8)
    assert page(cloud, "offset=7&limit=9") == (names[7:], 8)
    assert page(cloud, "offset=20") == ([], 8)
    assert page(cloud, "search=yARD-&limit=2") == (names[:2], 6)
    assert page(cloud, "search=%25") == ([], 0)
    trouble = ["Yard-5", "Yard-4", "Yard-2", "Yard-0", "Yard-1", "Yard-3", "cam", "ops-north"]
    assert page(cloud, "order=trouble") == (trouble, 8)
    assert page(cloud, "order=trouble&limit=2&offset=1") == (trouble[1:3], 8)
    told = listed(cloud)
    assert (told["Yard-5"]["level"], told["Yard-5"]["problems"]) == ("bad", ["refused version 2: expired"])
    assert told["Yard-2"]["problems"] == ["silent for 15 min"]
    for wrong in ("order=age", "limit=0", "offset=-1", f"search={'x' * 65}"):
        refused(cloud.get(f"/v1/cohorts/north/devices?{wrong}", token=cloud.operator), 400, "invalid_request")


def test_a_device_is_shown_with_what_it_sent_and_fetched(cloud: Cloud) -> None:
    for number in range(30):
        cloud.store.put("north", make_samples(1, seed=number), device="cam", now=5.0, max_backlog=100)
    cloud.store.put("north", make_samples(1, seed=99), device="other", now=5.0, max_backlog=100)
    for version in (1, 2):
        cloud.publish(version, bytes([version]), trace={"steps": []})
        cloud.store.note_fetches([Fetch("north", version, "cam", 10.0 + version)])
    found = cloud.get("/v1/cohorts/north/devices/cam", token=cloud.operator)
    told = found.json()
    assert told["name"] == "cam"
    assert [one["id"] for one in told["uploads"]] == [make_samples(1, seed=n)[0].id for n in range(29, 9, -1)]
    assert told["adopted"] == [{"version": 2, "fetched_at": 12.0}, {"version": 1, "fetched_at": 11.0}]
    assert {name: told[name] for name in listed(cloud)["cam"]} == listed(cloud)["cam"]
    operator = cloud.get("/v1/cohorts/north/devices/ops-north", token=cloud.operator).json()
    assert (operator["role"], operator["uploads"], operator["adopted"]) == ("operator", [], [])
    for name in ("nobody", "far", "%00", "x" * 300):
        answer = cloud.get(f"/v1/cohorts/north/devices/{name}", token=cloud.operator)
        refused(answer, 404, "unknown_device")
    refused(cloud.get("/v1/cohorts/north/devices/cam"), 403, "not_an_operator")
