"""Requests with a token that is not for them: of another cohort, ended, an operator's, or none that was ever given.

Stopped by the checks before every endpoint (docs/protocol.md, 2.1): the body is not looked at before they are through,
and only the SHA-256 of a token is kept. REFUSED: the status that the protocol says, nothing is stored, no update or
metrics are read, and an honest device gets through.

    python attacks/foreign_token.py
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial

from _cloud import SOUTH, Service, make_samples, service
from _edge import COHORT
from _parts import check, main
from cema.cloud.store.devices import token_digest
from cema.cloud.store.fleet import DeviceAct, Expire, Move, Remove, Renew, fleet_of
from cema.formats.sample import encode_samples

READ = (
    f"/v1/cohorts/{COHORT}/updates/latest",
    f"/v1/cohorts/{COHORT}/artifacts/{'0' * 64}",
    f"/v1/cohorts/{COHORT}/status",
)
METRICS = ("/metrics",)


def attack(
    cloud: Service,
    *,
    token: Callable[[Service], str],
    status: int,
    upload: bool = True,
    read: tuple[str, ...] = READ,
) -> None:
    """Use a token for what it must not do; each request must be answered `status`."""
    stolen = token(cloud)
    before = cloud.engine.store.backlog(COHORT).samples
    if upload:
        answered = cloud.post(encode_samples(make_samples(4)), token=stolen).status_code
        check(answered == status, f"an upload is answered {answered}, not {status}")
    for path in read:
        answered = cloud.get(path, token=stolen).status_code
        check(answered == status, f"{path} is answered {answered}, not {status}")
    check(cloud.engine.store.backlog(COHORT).samples == before, "samples were stored")
    cloud.takes_honest_samples()


def revoked(cloud: Service) -> str:
    token = cloud.engine.devices.add("lost", cohort=COHORT)
    check(cloud.get(READ[2], token=token).status_code == 200, "the token was never good")
    cloud.engine.devices.revoke("lost")
    return token


def ended(cloud: Service, act: DeviceAct, *, ago: float = 0.0) -> str:
    """Add a device whose token is good until an act, which was done some seconds ago."""
    name = type(act).__name__.lower()
    token = cloud.engine.devices.add(name, cohort=COHORT)
    check(cloud.get(READ[2], token=token).status_code == 200, "the token was never good")
    fleet_of(cloud.engine.devices).act(name, act, now=time.time() - ago)
    return token


def operator(cloud: Service, *, cohort: str | None) -> str:
    return cloud.add("operator", cohort, role="operator")


VARIANTS = {
    "another-cohort": partial(attack, token=lambda cloud: cloud.add("far", SOUTH), status=403),
    "revoked": partial(attack, token=revoked, status=403),
    "expired": partial(attack, token=partial(ended, act=Expire(at=1.0)), status=403),
    "moved-to-another-cohort": partial(attack, token=partial(ended, act=Move(to=SOUTH)), status=403),
    "removed": partial(attack, token=partial(ended, act=Remove()), status=401, read=READ + METRICS),
    "replaced-an-overlap-ago": partial(
        attack, token=partial(ended, act=Renew(overlap=60.0), ago=61.0), status=401, read=READ + METRICS
    ),
    "operator-uploads": partial(attack, token=partial(operator, cohort=None), status=403, read=()),
    "operator-of-the-cohort-uploads": partial(
        attack, token=partial(operator, cohort=COHORT), status=403, read=()
    ),
    "operator-of-another-cohort": partial(attack, token=partial(operator, cohort=SOUTH), status=403),
    "device-reads-metrics": partial(
        attack, token=lambda cloud: cloud.token, status=403, upload=False, read=METRICS
    ),
    "cohort-operator-reads-metrics": partial(
        attack, token=partial(operator, cohort=COHORT), status=403, upload=False, read=METRICS
    ),
    "invented": partial(attack, token=lambda _: "A" * 43, status=401, read=READ + METRICS),
    "name-of-a-device": partial(attack, token=lambda _: "honest-1", status=401, read=READ + METRICS),
    "hash-from-the-store": partial(
        attack, token=lambda cloud: token_digest(cloud.token).hex(), status=401, read=READ + METRICS
    ),
    "first-half-of-a-token": partial(
        attack, token=lambda cloud: cloud.token[:21], status=401, read=READ + METRICS
    ),
    "token-in-other-letters": partial(attack, token=lambda cloud: cloud.token.swapcase(), status=401),
    "two-tokens": partial(attack, token=lambda cloud: f"{'A' * 43} {cloud.token}", status=401),
}

if __name__ == "__main__":
    sys.exit(main(VARIANTS, service, shared=True))
