"""Clocks that jump: the cloud's is ten years ahead or behind once, a device's is set while it installs an update.

Stopped by taking a version or a sample from the future for what it is (a clock that was wrong), and on the device by
reading the clock once for an update and keeping the floor apart from every clock. REFUSED: once the clock is right the
cloud goes on publishing at once and devices install it; what a device has installed serves on, also after a restart.

    python attacks/clock_jump.py
"""

from __future__ import annotations

import sys
import time
from collections import OrderedDict
from functools import partial
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import numpy as np
import torch
from torch import nn

from _edge import (
    CLASSES,
    COHORT,
    HEAD,
    KEY,
    PREPROCESSING,
    SIDE,
    YEAR,
    Cloud,
    Device,
    Update,
    device_and_cloud,
    make_bundle,
    make_update,
    norm_state,
)
from _parts import check, folder_only, main
from cema.cloud.config import CohortConfig, PublishConfig, WorkerConfig
from cema.cloud.store.sqlite import SqliteStore
from cema.cloud.worker.cohort import CohortWorker
from cema.cloud.worker.publisher import Publisher
from cema.formats.image import CodecConfig, encode_image
from cema.formats.sample import Sample, sample_id
from cema.formats.update import verify_update
from cema.models.spec import Model


def small() -> Model:
    """Return the model of the devices' bundle in torch, before its first batch."""
    state, head = norm_state(0), nn.Linear(3, CLASSES, bias=False)
    layers = {
        "bn": nn.BatchNorm2d(3),
        "relu": nn.ReLU(),
        "pool": nn.AdaptiveAvgPool2d(1),
        "flat": nn.Flatten(),
    }
    module = nn.Sequential(OrderedDict(layers | {"head": head}))
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(HEAD))
        layers["bn"].weight.copy_(torch.from_numpy(state["bn.scale"]))
        layers["bn"].bias.copy_(torch.from_numpy(state["bn.shift"]))
        layers["bn"].running_var.fill_(1 - layers["bn"].eps)
    return Model("small", module.eval(), PREPROCESSING, CLASSES)


class Publishing:
    """A real worker over a real store, whose clock can be set."""

    def __init__(self, folder: Path) -> None:
        self.bundle = make_bundle(folder)
        # Everything finite is published: the gate is not attacked.
        publish = PublishConfig(min_seconds=0.0, gate=1.0, evidence=1)
        settings = CohortConfig(
            name=COHORT, bundle=str(self.bundle.path), model="small", foundation="small",
            publish=publish,
        )  # fmt: skip
        self.ahead, self._rng = 0.0, np.random.default_rng(0)
        self.store = SqliteStore(folder / "cema.db", max_bytes=2**27)
        self._worker = CohortWorker(
            self.store, settings, edge=small(), foundation=small(),
            publisher=Publisher(small(), self.bundle, COHORT, KEY, publish),
            config=WorkerConfig(device="cpu", idle_steps=0), clock=self.now,
        )  # fmt: skip

    def now(self) -> float:
        return time.time() + self.ahead

    def receive(self, count: int) -> None:
        images = self._rng.integers(0, 256, (count, SIDE, SIDE, 3), dtype=np.uint8)
        encoded = [encode_image(image, CodecConfig()) for image in images]
        samples = [
            Sample(id=sample_id(data), image=data, entropy=0.5, label=0, version=0, captured_at=0.0)
            for data in encoded
        ]
        self.store.put(COHORT, samples, device="camera", now=self.now(), max_backlog=1000)

    def publish(self, count: int = 32) -> Update:
        """Receive samples and learn from them; a new version must come of it."""
        before = self.store.latest_update(COHORT)
        self.receive(count)
        while self._worker.run_once():
            pass
        made = self.store.latest_update(COHORT)
        if made is None or (before is not None and made.version <= before.version):
            check(False, "no new version was published")
        manifest = verify_update(
            made.envelope, public_keys=self.bundle.public_keys, cohort=COHORT, base=self.bundle.manifest.base,
            running_version=0, now=0.0,
        )  # fmt: skip
        return Update(manifest, made.envelope, made.payload)


def cloud_clock(folder: Path, *, seconds: float) -> None:
    """Let the cloud publish a version while its clock is wrong, and another; the device restarts after each."""
    cloud, publishing = Cloud(), Publishing(folder)
    device = Device(folder, cloud.url, bundle=publishing.bundle)
    try:
        for ahead in (0.0, seconds, 0.0):
            publishing.ahead = ahead
            made = publishing.publish()
            cloud.offer(made)
            if ahead < 0:  # it has expired by every right clock
                device.has_considered(cloud)
                check(device.agent.status().version < made.manifest.version, "an expired version serves")
            else:
                said = f"version {made.manifest.version} is not installed"
                check(device.agent.wait_for_version(made.manifest.version, 10), said)
            device.restart()
    finally:
        device.agent.close()
        publishing.store.close()
        cloud.close()


def sample_from_the_future(folder: Path) -> None:
    """Let a few samples come while the cloud's clock is ahead: they must not wait for ten years to be learned from."""
    publishing = Publishing(folder)
    publishing.ahead = 10 * YEAR
    publishing.receive(3)
    publishing.ahead = 0.0
    publishing.publish(2)
    check(publishing.store.backlog(COHORT).samples == 0, "the samples still wait")
    publishing.store.close()


def device_clock(folder: Path, *, seconds: float, at: str) -> None:
    """Set a device's clock at the moment at which it asks for something of an update."""
    with device_and_cloud(folder) as pair:
        device, cloud = pair.device, pair.cloud
        device.installs(cloud, 1)

        def instead(request: BaseHTTPRequestHandler) -> bool:
            device.ahead = seconds if at in request.path else device.ahead
            return False

        cloud.instead = instead
        device.installs(cloud, 3, expires=int(time.time() + (3600 if at == "/artifacts/" else 20 * YEAR)))
        device.restart()
        check(device.serves(3), f"version {device.agent.status().version} serves after a restart, not 3")
        cloud.offer(make_update(device.bundle, 2, expires=int(time.time() + 20 * YEAR)))
        device.has_considered(cloud)
        check(device.serves(3), f"version {device.agent.status().version} serves, after 3")
        cloud.instead = lambda _: False
        device.ahead = 0.0
        device.installs(cloud, 4)


VARIANTS = {
    "cloud-ten-years-ahead": partial(cloud_clock, seconds=10 * YEAR),
    "cloud-ten-years-behind": partial(cloud_clock, seconds=-10 * YEAR),
    "samples-from-the-future": sample_from_the_future,
    "device-ahead-while-it-fetches": partial(device_clock, seconds=10 * YEAR, at="/artifacts/"),
    "device-behind-while-it-fetches": partial(device_clock, seconds=-10 * YEAR, at="/artifacts/"),
    "device-before-1970-while-it-asks": partial(device_clock, seconds=-100 * YEAR, at="/updates/"),
    "device-ahead-while-it-asks": partial(device_clock, seconds=10 * YEAR, at="/updates/"),
}

if __name__ == "__main__":
    torch.set_num_threads(1)  # small networks wait for more threads longer than they gain by them
    sys.exit(main(VARIANTS, folder_only))
