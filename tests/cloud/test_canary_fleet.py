"""A canary device takes a bad version back for all: real cloud, real agents, real commands."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from cloud_process import PATIENCE, Server, cema, eventually
from cloud_support import samples_of
from cloud_tiny_models import quadrants

from cema.cloud.config import CloudConfig
from cema.cloud.store.offers import Rollout, offers_of
from cema.cloud.store.reports import reports_of
from cema.cloud.worker.canary import by_hash
from cema.edge.agent import EdgeAgent
from cema.edge.config import CloudLink, EdgeConfig, GuardConfig, UpdateConfig
from cema.ondevice.preprocess import Images

ROLLOUT = """
[cohort.rollout]
mode = "canary"
first = 0.3
wait = 4.0
least = 40

[limits]
device_samples = 0
"""


class Camera:
    """A device that predicts all the time, and remembers which versions have served."""

    def __init__(self, folder: Path, name: str, url: str, token: str) -> None:
        self.name = name
        self.drifted = True
        self.agent = EdgeAgent(
            EdgeConfig(
                bundle=str(folder / "bundle"),
                state=str(folder / name),
                guard=GuardConfig(limit=9.0),
                cloud=CloudLink(url=url, cohort="north", token=token),
                update=UpdateConfig(poll_seconds=0.2, report_seconds=1.0),
            )
        )
        self.served: set[int] = set()
        self.failures: list[Exception] = []
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._predict)
        self._thread.start()

    def _images(self) -> Images:
        images, _ = quadrants(4, 7, drift=True)
        return images if self.drifted else 255 - images

    def _predict(self) -> None:
        while not self._end.is_set():
            try:
                assert np.isfinite(self.agent.predict(self._images()).logits).all()
            except Exception as error:
                self.failures.append(error)
                return
            self.served.add(self.agent.status().version)
            self._end.wait(0.01)

    def close(self) -> None:
        self._end.set()
        self._thread.join(PATIENCE)
        self.agent.close()


class Fleet:
    """A cloud whose versions are tried by a canary device, that device, and another one."""

    def __init__(self, folder: Path) -> None:
        self.config = folder / "cloud.toml"
        text = self.config.read_text().replace("every_steps = 2", "every_steps = 1\ngate = 1.0")
        self.config.write_text(text + ROLLOUT)
        first, second, third = by_hash("north", ["cam-1", "cam-2", "cam-3"])
        with closing(CloudConfig.load(self.config).open_store()) as store:
            tokens = {
                name: store.devices(["north"]).add(name, cohort="north") for name in (first, second, third)
            }
        self.server = Server(self.config, tokens[third])
        self.canary, self.other = (
            Camera(folder, name, self.server.url, tokens[name]) for name in (first, second)
        )
        self.sent = 0

    def learn(self, until: Callable[[Rollout], bool]) -> Rollout:
        """Send samples until the newest rollout is as wanted, and return it."""
        with closing(CloudConfig.load(self.config).open_store()) as store:
            offers = offers_of(store)
            assert offers is not None

            def reached() -> bool:
                found = offers.rollout("north")
                if found is not None and until(found):
                    return True
                busy = found is not None and found.state == "open"
                if not busy and store.backlog("north").samples < 32:
                    images, _ = quadrants(16, 100 + self.sent, drift=True)
                    self.sent += 16
                    self.server.send(samples_of(images))
                return False

            try:
                eventually(reached)
            except AssertionError:
                print(offers.rollout("north"), reports_of(store), store.status("north"))
                raise
            found = offers.rollout("north")
        assert found is not None
        return found

    def close(self) -> None:
        self.canary.close()
        self.other.close()
        self.server.close()


@pytest.fixture
def fleet(factory: Path, tmp_path: Path) -> Iterator[Fleet]:
    shutil.copytree(factory, tmp_path / "f")
    fleet = Fleet(tmp_path / "f")
    yield fleet
    fleet.close()


def test_a_bad_version_is_caught_by_the_canary_device_and_taken_back(fleet: Fleet) -> None:
    eventually(lambda: len(cema_devices(fleet)) >= 2)
    good = fleet.learn(lambda found: found.state == "released")
    assert good.devices == (fleet.canary.name,)
    assert fleet.other.agent.wait_for_version(good.version, PATIENCE)

    fleet.canary.drifted = False  # what is learned next is not for what this device sees
    back = fleet.learn(lambda found: found.state == "taken_back")
    bad = back.version
    (reason,) = back.reasons.items()
    assert reason[0] == fleet.canary.name
    assert reason[1].startswith("guarded")
    for camera in (fleet.canary, fleet.other):
        assert camera.agent.wait_for_version(bad + 1, PATIENCE)
        assert camera.failures == []
    assert bad in fleet.canary.served
    assert bad not in fleet.other.served, "nobody but the canary device ever had it"
    told = cema(fleet.config, "status")["cohorts"][0]["rollout"]
    assert (told["state"], list(told["reasons"])) == ("taken_back", [fleet.canary.name])
    versions = {found["version"]: found for found in cema(fleet.config, "versions")["versions"]}
    assert versions[bad + 1]["digest"] == versions[back.before]["digest"]
    assert versions[bad + 1]["trace"]["kind"] == "taken back"


def test_one_device_is_pinned_and_follows_again(fleet: Fleet) -> None:
    eventually(lambda: len(cema_devices(fleet)) >= 2)
    first = fleet.learn(lambda found: found.state == "released").version
    assert fleet.other.agent.wait_for_version(first, PATIENCE)
    digest = fleet.other.agent.status().digest
    pinned = cema(fleet.config, "pin", "--to", str(first), "--device", fleet.other.name)
    assert pinned["state"] == "done"
    assert fleet.other.agent.wait_for_version(pinned["version"], PATIENCE)
    newer = fleet.learn(lambda found: found.state == "released" and found.version > pinned["version"])
    assert fleet.canary.agent.wait_for_version(newer.version, PATIENCE)
    assert (fleet.other.agent.status().version, fleet.other.agent.status().digest) == (
        pinned["version"],
        digest,
    )
    resumed = cema(fleet.config, "resume", "--device", fleet.other.name)
    assert fleet.other.agent.wait_for_version(resumed["version"], PATIENCE)
    assert fleet.other.agent.status().digest != digest
    assert fleet.other.agent.status().rejected_updates == {}


def cema_devices(fleet: Fleet) -> list[str]:
    """Return the names of the devices that were heard of."""
    with closing(CloudConfig.load(fleet.config).open_store()) as store:
        return list(store.reports())
