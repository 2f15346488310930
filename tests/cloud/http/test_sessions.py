"""Signing in at the page: whom a cookie stands for, for how long, and what it may do alone."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx2
import pytest
from cloud_client import Cloud, auth

from cema.cloud.store.sessions import SESSION_SECONDS, SESSIONS_OF_ONE
from cema.cloud.store.sqlite import SqliteStore
from cema.errors import StoreFull
from cema.testing.store_data import numbered_sample

FROM_PAGE = {"CEMA-Page": "1"}
STOP = {"type": "stop"}


@contextmanager
def sign_in(cloud: Cloud, token: str) -> Iterator[httpx2.Client]:
    """Yield a client that has the cookie of a session, and no token."""
    with httpx2.Client(base_url=cloud.url) as client:
        answer = client.post("/v1/session", json={"token": token}, headers=FROM_PAGE)
        assert answer.status_code == 200, answer.text
        yield client


def code(answer: httpx2.Response) -> str:
    return str(answer.json()["error"]["code"])


def test_the_cookie_can_neither_be_read_by_scripts_nor_sent_by_other_sites(cloud: Cloud) -> None:
    answer = httpx2.post(f"{cloud.url}/v1/session", json={"token": cloud.operator}, headers=FROM_PAGE)
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "samesite=strict" in cookie.lower()
    assert "Secure" not in cookie  # plain HTTP on this machine: the cookie would not come back
    assert cloud.operator not in cookie
    assert answer.json() == {"name": "ops", "role": "operator", "cohorts": ["north", "south"]}


def test_over_tls_the_cookie_is_sent_over_nothing_else(cloud: Cloud) -> None:
    by_proxy = FROM_PAGE | {"X-Forwarded-Proto": "https"}
    answer = httpx2.post(f"{cloud.url}/v1/session", json={"token": cloud.operator}, headers=by_proxy)
    assert "Secure" in answer.headers["set-cookie"]


def test_a_session_reads_what_its_token_reads(cloud: Cloud) -> None:
    with sign_in(cloud, cloud.northern_operator) as page:
        assert page.get("/v1/session").json()["cohorts"] == ["north"]
        assert page.get("/v1/cohorts/north/versions").status_code == 200
        assert code(page.get("/v1/cohorts/south/versions")) == "wrong_cohort"
        assert code(page.get("/metrics")) == "not_an_operator"
        assert [each["cohort"] for each in page.get("/v1/overview").json()["cohorts"]] == ["north"]
        refused = page.post("/v1/cohorts/north/acts", json=STOP, headers=FROM_PAGE)
        assert code(refused) == "not_an_administrator"


def test_a_session_of_an_admin_acts_only_with_the_page_s_header(cloud: Cloud) -> None:
    with sign_in(cloud, cloud.admin) as page:
        for path in ("acts", "devices", "devices/cam/acts", "deletions", "labels", "measures"):
            assert code(page.post(f"/v1/cohorts/north/{path}", json=STOP)) == "not_from_page", path
        assert cloud.store.waiting_act("north") is None
        done = page.post("/v1/cohorts/north/acts", json=STOP, headers=FROM_PAGE)
        assert (done.status_code, done.json()["actor"]) == (202, "token:boss")


def test_a_token_counts_where_both_came(cloud: Cloud) -> None:
    with sign_in(cloud, cloud.operator) as page:
        done = page.post("/v1/cohorts/north/acts", json=STOP, headers=auth(cloud.admin))
        assert done.json()["actor"] == "token:boss"


def test_devices_have_no_sessions_and_a_session_uploads_nothing(cloud: Cloud) -> None:
    refused = httpx2.post(f"{cloud.url}/v1/session", json={"token": cloud.token}, headers=FROM_PAGE)
    assert code(refused) == "not_an_operator"
    assert "set-cookie" not in refused.headers
    with sign_in(cloud, cloud.admin) as page:
        assert code(page.post("/v1/cohorts/north/samples", content=b"", headers=FROM_PAGE)) == "unauthorized"


def test_a_session_ends_with_signing_out_at_the_cloud_too(cloud: Cloud) -> None:
    with sign_in(cloud, cloud.operator) as page:
        kept = dict(page.cookies)
        assert code(page.delete("/v1/session")) == "not_from_page"
        assert page.delete("/v1/session", headers=FROM_PAGE).status_code == 204
        assert not page.cookies
        assert code(httpx2.get(f"{cloud.url}/v1/session", cookies=kept)) == "unauthorized"


@pytest.mark.parametrize("end", ["revoke", "renew"])
def test_a_session_ends_with_its_token(cloud: Cloud, end: str) -> None:
    with sign_in(cloud, cloud.operator) as page:
        getattr(cloud.engine.devices, end)("ops")
        assert code(page.get("/v1/session")) == {"revoke": "revoked", "renew": "unauthorized"}[end]


def test_a_session_ends_by_itself(cloud: Cloud) -> None:
    secret = cloud.store.open_session(cloud.operator, now=time.time() - SESSION_SECONDS - 1)
    name = f"cema_session_{cloud.url.rpartition(':')[2]}"
    old = httpx2.get(f"{cloud.url}/v1/session", cookies={name: secret or ""})
    assert code(old) == "unauthorized"


def test_nobody_is_signed_in_by_another_site(cloud: Cloud) -> None:
    refused = httpx2.post(f"{cloud.url}/v1/session", json={"token": cloud.operator})
    assert code(refused) == "not_from_page"


def test_clouds_on_other_ports_of_one_host_leave_each_other_s_sessions_alone(cloud: Cloud) -> None:
    # A browser sends the cookies of a host to all of its ports.
    names = set()
    for host in ("box:8443", "box:9443", "box", "[::1]:8443", "[::1]"):
        answer = httpx2.post(
            f"{cloud.url}/v1/session", json={"token": cloud.operator}, headers=FROM_PAGE | {"Host": host}
        )
        name, _, secret = answer.headers["set-cookie"].partition(";")[0].partition("=")
        names.add(name)
        sent = {"Cookie": f"{name}={secret}"}
        assert httpx2.get(f"{cloud.url}/v1/session", headers={"Host": host} | sent).status_code == 200
        other = {"Host": "box:1"} | sent
        assert code(httpx2.get(f"{cloud.url}/v1/session", headers=other)) == "unauthorized"
    assert names == {"cema_session", "cema_session_8443", "cema_session_9443"}


def test_operators_sign_in_where_the_store_is_full(cloud: Cloud) -> None:
    store = cloud.store
    assert isinstance(store, SqliteStore)
    tokens = [cloud.engine.devices.add(f"ops-{i}", cohort=None, role="operator") for i in range(6)]
    samples = [numbered_sample(number, 8000) for number in range(8)]
    store.put("north", samples, device="cam", now=1.0, max_backlog=100)
    seq = store.sequence("north", after=0, limit=100)[-1]
    store.commit_step("north", seq, b"", None, epoch=store.claim("north").epoch, now=1.0)
    with store.database.write() as connection:  # the samples that the worker has seen can go
        connection.execute("CREATE TABLE filler (content BLOB)")
    size = 2**20
    while size:
        try:
            with store.database.write() as connection:
                connection.execute("INSERT INTO filler VALUES (zeroblob(?))", (size,))
        except StoreFull:
            size //= 2
    for token in tokens:
        for _ in range(SESSIONS_OF_ONE):
            with sign_in(cloud, token) as page:
                assert page.get("/v1/session").status_code == 200
