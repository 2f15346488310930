"""Requests with the cookie of a session that is not for them: of another cohort, ended, sent by another site, invented.

Stopped by the checks before every endpoint (docs/protocol.md, 2.1 and 2.10): a session stands for its token and ends
with it, what changes anything needs a header that no other site can send, and only the SHA-256 of a secret is kept.
REFUSED: the status that the protocol says, at every endpoint that the service describes, and nothing was done.

    python attacks/stolen_session.py
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial

import httpx2

from _cloud import SOUTH, Service, service
from _edge import COHORT
from _parts import check, main
from cema.cloud.store.devices import token_digest
from cema.cloud.store.fleet import DeviceAct, Expire, Move, Remove, Renew, Revoke, fleet_of
from cema.cloud.store.sessions import SESSION_SECONDS, sessions_of
from cema.cloud.store.sqlite import SqliteStore

# What a page of another site sends with the cookies of whoever looks at it, where a browser lets it.
FROM_ELSEWHERE = {"Origin": "https://elsewhere.example", "Content-Type": "text/plain"}
HTTP = httpx2.Client(trust_env=False, timeout=20)
EVERYWHERE = ("/v1/session", "/v1/overview", "/v1/events", "/metrics")
DEVICES = {"updates/latest", "artifacts/{digest}", "keys", "bundle", "bundles/{digest}", "status"}


def session(cloud: Service, token: str) -> str:
    """Sign in as the page does and return the secret."""
    answer = httpx2.post(
        f"{cloud.url}/v1/session", json={"token": token}, headers={"CEMA-Page": "1"}, trust_env=False
    )
    check(answer.status_code == 200, f"signing in is answered {answer.status_code}")
    return str(next(iter(answer.cookies.values())))


def ask(
    cloud: Service, path: str, secret: str, *, method: str = "GET", body: bytes = b"", **more: str
) -> int:
    """Send a request with a cookie alone, under the names that the cookie may have; return the status."""
    cookies = "; ".join(f"{name}={secret}" for name in ("cema_session", f"cema_session_{cloud.port}"))
    with HTTP.stream(
        method,
        cloud.url + path,
        content=body,
        headers={"Cookie": cookies} | more,
    ) as answer:
        return int(answer.status_code)


def paths(cloud: Service, method: str) -> list[str]:
    """Return what the service describes of a cohort, for people, with something in the place of names."""
    prefix = "/v1/cohorts/{cohort}/"
    known = httpx2.get(f"{cloud.url}/openapi.json", trust_env=False).json()["paths"]
    found = [
        path for path, operations in known.items() if method.lower() in operations and path.startswith(prefix)
    ]
    check(len(found) > 5, f"only {found} are described")
    found = [path for path in found if path.removeprefix(prefix) not in DEVICES | {"samples", "reports"}]
    names = {"cohort": COHORT, "name": "honest-1", "id": "0" * 64, "version": "1"}
    return [path.format(**names) for path in found] + (
        [f"/v1/cohorts/{COHORT}/samples"] if method == "GET" else []
    )


def reads(cloud: Service, *, secret: Callable[[Service], str], status: int, everywhere: bool = True) -> None:
    """Read all there is with a secret; each request must be answered `status`."""
    stolen = secret(cloud)
    for path in (*paths(cloud, "GET"), *(EVERYWHERE if everywhere else ())):
        answered = ask(cloud, path, stolen)
        check(answered == status, f"{path} is answered {answered}, not {status}")
    cloud.takes_honest_samples()


def writes(cloud: Service, *, role: str, status: int, **headers: str) -> None:
    """Do all there is to do with the session of somebody who may, or may not; nothing may come of it."""
    stolen = session(cloud, cloud.add("somebody", None, role=role))  # type: ignore[arg-type]
    store = cloud.engine.store
    assert isinstance(store, SqliteStore)
    before = store.audit(limit=1000)
    bodies = (b'{"type": "stop"}', b'{"type": "revoke"}', b"{}", b'{"devices": [{"name": "spy"}]}')
    for path in paths(cloud, "POST"):
        for body in bodies:
            answered = ask(cloud, path, stolen, method="POST", body=body, **headers)
            check(answered == status, f"{path} is answered {answered}, not {status}")
    check(store.waiting_act(COHORT) is None, "an act was written down")
    check(store.audit(limit=1000) == before, "something was done")
    check("spy" not in {device.name for device in cloud.engine.devices.list()}, "a device was added")
    cloud.takes_honest_samples()


def ended(cloud: Service, act: DeviceAct, *, ago: float = 0.0) -> str:
    """Sign in an operator of the cohort whose token is good until an act, which was done some seconds ago."""
    name = f"was-{type(act).__name__.lower()}-{ago:.0f}"
    token = cloud.engine.devices.add(name, cohort=COHORT, role="operator")
    secret = session(cloud, token)
    check(ask(cloud, f"/v1/cohorts/{COHORT}/samples", secret) == 200, "the session was never good")
    fleet_of(cloud.engine.devices).act(name, act, now=time.time() - ago)
    return secret


def opened(cloud: Service, ago: float) -> str:
    """Return a session that was opened so many seconds ago."""
    sessions = sessions_of(cloud.engine.store)
    check(sessions is not None, "the store keeps no sessions")
    assert sessions is not None
    return sessions.open_session(cloud.add("late", None, role="admin"), now=time.time() - ago) or ""


def signed_out(cloud: Service) -> str:
    secret = session(cloud, cloud.add("gone", None, role="admin"))
    status = ask(cloud, "/v1/session", secret, method="DELETE", **{"CEMA-Page": "1"})
    check(status == 204, f"signing out is answered {status}")
    return secret


def device_signs_in(cloud: Service) -> None:
    for token, status in ((cloud.token, 403), ("A" * 43, 401), (token_digest(cloud.token).hex(), 401)):
        answer = httpx2.post(
            f"{cloud.url}/v1/session", json={"token": token}, headers={"CEMA-Page": "1"}, trust_env=False
        )
        check(answer.status_code == status, f"it is answered {answer.status_code}, not {status}")
        check("set-cookie" not in answer.headers, "a cookie is set")


def signed_in_from_elsewhere(cloud: Service) -> None:
    """Sign somebody who looks at another site in as the attacker."""
    body = f'{{"token": "{cloud.add("evil", None, role="admin")}"}}'.encode()
    answer = httpx2.post(f"{cloud.url}/v1/session", content=body, headers=FROM_ELSEWHERE, trust_env=False)
    check(answer.status_code == 403, f"it is answered {answer.status_code}")
    check("set-cookie" not in answer.headers, "a cookie is set")


def of_south(cloud: Service) -> str:
    return session(cloud, cloud.add("far", SOUTH, role="operator"))


VARIANTS = {
    "another-cohort": partial(reads, secret=of_south, status=403, everywhere=False),
    "revoked": partial(reads, secret=partial(ended, act=Revoke()), status=403),
    "expired": partial(reads, secret=partial(ended, act=Expire(at=1.0)), status=403),
    "removed": partial(reads, secret=partial(ended, act=Remove()), status=401),
    "renewed": partial(reads, secret=partial(ended, act=Renew()), status=401),
    "replaced-an-overlap-ago": partial(
        reads, secret=partial(ended, act=Renew(overlap=60.0), ago=61.0), status=401
    ),
    "moved": partial(reads, secret=partial(ended, act=Move(to=SOUTH)), status=403, everywhere=False),
    "signed-out": partial(reads, secret=signed_out, status=401),
    "of-yesterday": partial(reads, secret=partial(opened, ago=SESSION_SECONDS + 1), status=401),
    "of-a-clock-ahead": partial(reads, secret=partial(opened, ago=-86_400.0 * 365), status=401),
    "invented": partial(reads, secret=lambda _: "A" * 43, status=401),
    "token-as-a-cookie": partial(
        reads, secret=lambda cloud: cloud.add("ops", None, role="admin"), status=401
    ),
    "hash-from-the-store": partial(
        reads,
        secret=lambda cloud: token_digest(session(cloud, cloud.add("ops", None, role="admin"))).hex(),
        status=401,
    ),
    "admin-from-elsewhere": partial(writes, role="admin", status=403, **FROM_ELSEWHERE),
    "operator-acts": partial(writes, role="operator", status=403, **{"CEMA-Page": "1"}),
    "device-signs-in": device_signs_in,
    "signed-in-from-elsewhere": signed_in_from_elsewhere,
}

if __name__ == "__main__":
    sys.exit(main(VARIANTS, service, shared=True))
