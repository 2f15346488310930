"""Who may act on versions over HTTP, and who may read about it."""

from __future__ import annotations

import pytest
from cloud_client import Cloud, auth

ACT = {"type": "stop"}


@pytest.mark.parametrize(
    ("who", "status"),
    [("token", 403), ("operator", 403), ("northern_operator", 403), ("southern", 403), ("admin", 202)],
)
def test_only_an_admin_acts(cloud: Cloud, who: str, status: int) -> None:
    response = cloud.http.post("/v1/cohorts/north/acts", json=ACT, headers=auth(getattr(cloud, who)))
    assert response.status_code == status
    assert (cloud.store.waiting_act("north") is not None) == (status == 202)


def test_an_admin_of_one_cohort_acts_on_no_other(cloud: Cloud) -> None:
    token = cloud.engine.devices.add("northern", cohort="north", role="admin")
    south = cloud.http.post("/v1/cohorts/south/acts", json=ACT, headers=auth(token))
    assert south.json()["error"]["code"] == "wrong_cohort"
    assert cloud.get("/metrics", token=token).status_code == 403
    north = cloud.http.post("/v1/cohorts/north/acts", json=ACT, headers=auth(token))
    assert (north.status_code, north.json()["actor"]) == (202, "token:northern")


@pytest.mark.parametrize("path", ["versions", "acts"])
def test_devices_do_not_read_about_acts_and_versions(cloud: Cloud, path: str) -> None:
    assert cloud.get(f"/v1/cohorts/north/{path}").json()["error"]["code"] == "not_an_operator"
    for who in (cloud.operator, cloud.northern_operator, cloud.admin):
        assert cloud.get(f"/v1/cohorts/north/{path}", token=who).status_code == 200


def test_an_admin_uploads_nothing(cloud: Cloud) -> None:
    response = cloud.post(b"", Authorization=f"Bearer {cloud.admin}")
    assert response.json()["error"]["code"] == "not_a_device"


def test_an_address_with_two_methods_names_both(cloud: Cloud) -> None:
    response = cloud.http.delete("/v1/cohorts/north/acts", headers=auth(cloud.admin))
    assert (response.status_code, response.headers["allow"]) == (405, "GET, POST")
