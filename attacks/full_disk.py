"""The disk takes no more bytes, on the device or in the cloud; the kernel's limit on file sizes stands for it.

Stopped by acknowledging nothing, and accepting no update, before it is on the disk. REFUSED: `predict` goes on, nothing
is answered `stored` that is not, no update serves that cannot be remembered, and once there is room everything goes on.

    python attacks/full_disk.py
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from _cloud import make_samples, service
from _edge import COHORT, Device, Pair, device_and_cloud, make_update
from _parts import check, eventually, folder_only, main
from cema.formats.sample import encode_samples


@contextmanager
def full_disk() -> Iterator[None]:
    """Let the kernel refuse every byte that this process writes to a file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def device_full(folder: Path) -> None:
    with device_and_cloud(folder) as pair:
        _device_full(pair)


def _device_full(pair: Pair) -> None:
    device, cloud = pair.device, pair.cloud
    device.installs(cloud, 1)
    with full_disk():
        cloud.offer(make_update(device.bundle, 2))
        device.has_considered(cloud)
        check(device.serves(1), f"version {device.agent.status().version} serves and is not remembered")
        check(device.see(8) > 0, "the device predicts no more")
        check(bool(device.agent.status().last_error), "the device does not say that its disk is full")
    eventually(lambda: device.serves(2), "the update is not installed once there is room")
    selected = device.see(8, seed=1)
    check(
        device.agent.flush(15),
        f"samples are not delivered once there is room: {device.agent.status().last_error}",
    )
    check(
        len(cloud.stored) >= selected, f"the cloud has {len(cloud.stored)} samples, {selected} were selected"
    )
    device.restart()
    check(device.serves(2), "the update is forgotten")


def device_starts(folder: Path) -> None:
    """Start a device on a full disk: it predicts."""
    with device_and_cloud(folder) as pair:
        device = pair.device
        device.installs(pair.cloud, 1)
        device.agent.close()
        with full_disk():
            device.start()
            check(device.serves(1), "the installed version does not serve")
        check(device.see(8) > 0 and device.agent.flush(15), "nothing is delivered once there is room")


def cloud_full(folder: Path) -> None:
    """Upload to a cloud whose disk is full, through a device that keeps what was not stored."""
    with service(folder) as cloud:
        before = cloud.engine.store.backlog(COHORT).samples
        body = encode_samples(make_samples(8))
        with full_disk():
            status = cloud.post(body).status_code
            check(status == 503, f"an upload to a full disk is answered {status}")
        check(cloud.engine.store.backlog(COHORT).samples == before, "something was stored")
        verdicts = {verdict["verdict"] for verdict in cloud.post(body).json()["verdicts"]}
        check(verdicts == {"stored"}, f"once there is room the verdicts are {verdicts}")
        check(cloud.engine.store.backlog(COHORT).samples == before + 8, "samples are missing")


def both_full(folder: Path) -> None:
    """Let a device's samples be under way while no disk takes anything: each arrives, or is counted as dropped."""
    with service(folder) as cloud:
        device = Device(cloud.new_folder(), cloud.url, token=cloud.token)
        try:
            selected = device.see(16)
            with full_disk():
                device.see(8, seed=1)
            check(device.agent.flush(15), f"nothing is delivered: {device.agent.status().last_error}")
            got = cloud.engine.store.backlog(COHORT).samples
            dropped = sum(device.agent.status().dropped.values())
            check(
                got + dropped >= selected,
                f"{got} of {selected} samples came, {dropped} are said to be dropped",
            )
        finally:
            device.agent.close()


VARIANTS = {
    "device": device_full,
    "device-starts": device_starts,
    "cloud": cloud_full,
    "device-and-cloud": both_full,
}

if __name__ == "__main__":
    sys.exit(main(VARIANTS, folder_only))
