"""Who may act on versions over HTTP, and who may read about it."""

from __future__ import annotations

from pathlib import Path

import httpx2
import pytest
from cloud_client import Cloud, auth, refused
from cloud_support import StillEngine, serving, write_config

from cema.cloud.config import CloudConfig

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


def test_the_share_of_canary_devices_is_set_where_there_are_any(cloud: Cloud) -> None:
    def ask(first: float | None) -> httpx2.Response:
        act = {"type": "canary", "first": first}
        return cloud.http.post("/v1/cohorts/north/acts", json=act, headers=auth(cloud.admin))

    error = refused(ask(0.2), 409, "act_refused")
    assert "by the mode 'immediate'" in error["message"]
    assert ask(None).status_code == 202, "as configured: that does no harm"
    for wrong in (0, -0.1, 1.5, "half"):
        act = {"type": "canary", "first": wrong}
        found = cloud.http.post("/v1/cohorts/north/acts", json=act, headers=auth(cloud.admin))
        refused(found, 400, "invalid_request")


def test_the_share_of_canary_devices_is_in_the_status(tmp_path: Path) -> None:
    path = write_config(tmp_path)
    path.write_text(path.read_text().rstrip() + '\n[cohort.rollout]\nmode = "canary"\n')
    engine = StillEngine(CloudConfig.load(path))
    admin = engine.devices.add("boss", cohort=None, role="admin")
    with (
        serving(engine) as url,
        httpx2.Client(base_url=f"{url}/v1/cohorts/north", headers=auth(admin)) as http,
    ):
        assert http.get("/status").json()["canary_first"] is None
        answer = http.post("/acts", json={"type": "canary", "first": 0.25})
        assert (answer.status_code, answer.json()["state"]) == (202, "done")
        assert http.get("/status").json()["canary_first"] == 0.25
        assert http.get("/acts").json()["acts"][0]["act"] == {"type": "canary", "first": 0.25}
        assert http.post("/acts", json={"type": "resume"}).status_code == 202
        assert http.get("/status").json()["canary_first"] == 0.25
