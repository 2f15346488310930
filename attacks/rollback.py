"""A device is offered older versions than the one it has, each with the publisher's own good signature.

Stopped by the floor: a device remembers the highest version that it accepted, durably and before that version serves,
and no clock and no restart lowers it. REFUSED: the installed version goes on serving (the bundle's own, version 0,
where the installed one was lost or is another cohort's), and a newer one is installed.

    python attacks/rollback.py
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial

from _edge import YEAR, Cloud, Device, Pair, device_and_cloud, make_update
from _parts import check, main

Prepare = Callable[[Device, Cloud], None]
LATER, FOR_EVER = 2 * 10**9, int(100 * YEAR)  # only its number speaks against what is offered


def attack(pair: Pair, *, before: Prepare, version: int = 2, left: int = 3) -> None:
    """Offer an old version after something has happened; the version `left` must still serve."""
    device, cloud = pair.device, pair.cloud
    device.installs(cloud, 3)
    before(device, cloud)
    now = int(device.agent._clock.now())
    cloud.offer(make_update(device.bundle, version, expires=max(now, LATER) + FOR_EVER, payload_of=2))
    device.has_considered(cloud)
    device.restart()
    device.has_considered(cloud)
    check(device.serves(left), f"version {device.agent.status().version} serves, after 3")
    device.installs(cloud, 4, expires=LATER + FOR_EVER)


def nothing(device: Device, cloud: Cloud) -> None:
    pass


def clock(device: Device, cloud: Cloud, *, seconds: float, back: bool) -> None:
    device.ahead = seconds
    device.restart()
    device.has_considered(cloud)
    device.ahead = 0.0 if back else seconds


def payload_lost(device: Device, cloud: Cloud) -> None:
    device.agent.close()
    for file in device.folder.glob("update-*.bin"):
        file.unlink()
    cloud.envelope = None  # it would install the version that it lost again, which is right
    device.start()


def another_cohort(device: Device, cloud: Cloud) -> None:
    device.restart("south")
    cloud.offer(make_update(device.bundle, 1, cohort="south"))
    device.agent.wait_for_version(1, 10)
    device.restart()


VARIANTS = {
    "older-version": partial(attack, before=nothing),
    "first-version": partial(attack, before=nothing, version=1),
    "same-version-other-content": partial(attack, before=nothing, version=3),
    "clock-ten-years-ahead": partial(attack, before=partial(clock, seconds=10 * YEAR, back=False)),
    "clock-ahead-and-back": partial(attack, before=partial(clock, seconds=10 * YEAR, back=True)),
    "clock-before-1970": partial(attack, before=partial(clock, seconds=-100 * YEAR, back=False)),
    "payload-lost-and-restart": partial(attack, before=payload_lost, left=0),
    "another-cohort-and-back": partial(attack, before=another_cohort, left=0),
}

if __name__ == "__main__":
    sys.exit(main(VARIANTS, device_and_cloud))
