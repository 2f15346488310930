"""A device never accepts an older version, whatever its clock does at whatever moment."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from edge_device import Device
from edge_support import Cloud, FakeTime, Update, make_bundle, make_update
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from cema.formats.bundle import Bundle

NOW, HOUR = 1_800_000_000, 3600
STAGES = ("payload", "save")
# Into the next hour, by years, back by a minute, back before 1970.
JUMPS = (HOUR, 10**9, -60, -NOW - 10**6)


def update_of(bundle: Bundle, key: Ed25519PrivateKey, version: int, hours: float = 1.0) -> Update:
    return make_update(bundle, key, version, created=NOW - 10, expires=NOW + int(hours * HOUR))


@pytest.fixture
def device(bundle: Bundle, cloud: Cloud, quick_path: Path) -> Iterator[Device]:
    device = Device(bundle, cloud, quick_path / "state", FakeTime(seconds=NOW))
    yield device
    device.stop()


@pytest.mark.parametrize("event", list(itertools.product((*STAGES, "after"), JUMPS, (False, True))), ids=str)
def test_a_jump_at_any_moment_leaves_the_floor(
    device: Device, cloud: Cloud, bundle: Bundle, key: Ed25519PrivateKey, event: tuple[str, float, bool]
) -> None:
    stage, jump, back = event

    def move(at: str) -> None:
        device.time.seconds += jump if at == stage else 0

    device.meanwhile = move
    cloud.publish(update_of(bundle, key, 3))
    device.poll()
    move("after")
    assert device.serves(3)
    device.restart()
    assert device.serves(3), "it was right when it was verified"
    if back:
        device.time.seconds = NOW
    # Signed for longer than any jump: only its number speaks against it.
    cloud.publish(make_update(bundle, key, 2, expires=NOW + 10**10))
    device.poll()
    device.restart()
    assert device.serves(3)
    assert device.rejected == {"old": 1}
    cloud.publish(make_update(bundle, key, 4, expires=NOW + 10**10))
    device.poll()
    assert device.serves(4)


def test_a_jump_while_a_version_is_renewed_leaves_the_floor(
    device: Device, cloud: Cloud, bundle: Bundle, key: Ed25519PrivateKey
) -> None:
    first = update_of(bundle, key, 3)
    cloud.publish(first)
    device.poll()
    cloud.publish(make_update(bundle, key, 5, payload=first.payload, expires=NOW + HOUR))
    device.meanwhile = lambda _: setattr(device.time, "seconds", NOW + 2 * HOUR)
    device.poll()
    device.restart()
    assert (device.active.version, device.resumed.floor) == (5, 5)


@pytest.mark.parametrize("accepted_at", [NOW + 2.0 * HOUR, None, "absent"])
def test_a_memory_whose_moment_is_wrong_keeps_its_floor(
    device: Device, cloud: Cloud, bundle: Bundle, key: Ed25519PrivateKey, accepted_at: Any
) -> None:
    """As devices wrote it whose clock jumped before the moment was written down."""
    cloud.publish(update_of(bundle, key, 3))
    device.poll()
    file = device.folder / "update.json"
    record = msgspec.json.decode(file.read_bytes())
    del record["base"]
    record["accepted_at"] = accepted_at
    if accepted_at == "absent":
        del record["accepted_at"]
    file.write_bytes(msgspec.json.encode(record))
    device.restart()
    assert device.resumed.floor == 3
    assert device.serves(0)
    assert device.resumed.error is not None
    cloud.publish(make_update(bundle, key, 2, expires=NOW + 10**10))
    device.poll()
    assert device.serves(0)
    assert device.rejected == {"old": 1}


def test_a_cohort_that_comes_back_finds_its_floor(
    device: Device, cloud: Cloud, bundle: Bundle, key: Ed25519PrivateKey
) -> None:
    for cohort, version in (("north", 7), ("south", 1), ("north", 7), ("south", 2)):
        device.stop()
        device.cohort = cohort
        device.start()
        cloud.publish(make_update(bundle, key, version, cohort=cohort, expires=NOW + HOUR))
        device.poll()
        assert device.serves(version)
    device.stop()
    device.cohort = "north"
    device.start()
    assert device.resumed.floor == 7
    cloud.publish(make_update(bundle, key, 6, expires=NOW + HOUR))
    device.poll()
    assert device.serves(0)
    assert device.rejected == {"old": 1}


class Orders(RuleBasedStateMachine):
    """Updates, jumps of the clock at every moment, restarts and a disk that refuses, in any order."""

    folder: tempfile.TemporaryDirectory[str]
    updates: dict[tuple[int, float], Update]
    bundle: Bundle

    @initialize()
    def begin(self) -> None:
        self.here = tempfile.TemporaryDirectory(dir=self.folder.name)
        self.cloud = Cloud()
        self.device = Device(self.bundle, self.cloud, Path(self.here.name) / "state", FakeTime(seconds=NOW))
        self.highest = 0

    @rule(jump=st.sampled_from(JUMPS))
    def jump(self, jump: float) -> None:
        self.device.time.seconds += jump

    @rule()
    def set_right(self) -> None:
        self.device.time.seconds = NOW

    @rule(
        offer=st.tuples(st.integers(1, 5), st.sampled_from((0.5, 10.0**5))),
        stage=st.sampled_from((*STAGES, "never")),
        jump=st.sampled_from(JUMPS),
        full=st.booleans(),
    )
    def poll(self, offer: tuple[int, float], stage: str, jump: float, full: bool) -> None:
        def meanwhile(at: str) -> None:
            self.device.time.seconds += jump if at == stage else 0
            if full and at == "save":
                raise OSError(28, "No space left on device")

        update, asked_at = self.updates[offer], self.device.time.seconds
        self.cloud.publish(update)
        self.device.meanwhile = meanwhile
        before = self.device.active.version
        self.device.poll()
        after = self.device.active.version
        if after != before:
            assert not full
            assert after == update.manifest.version > before
            assert asked_at < update.manifest.expires, "an expired update is never installed"
        self.highest = max(self.highest, after)

    @rule()
    def restart(self) -> None:
        self.device.restart()
        assert self.device.resumed.floor == self.highest

    @invariant()
    def the_newest_serves(self) -> None:
        if hasattr(self, "device"):
            assert self.device.active.version == self.highest

    def teardown(self) -> None:
        if hasattr(self, "device"):
            self.device.stop()
            self.cloud.close()
            self.here.cleanup()


def test_no_order_of_events_brings_an_older_version() -> None:
    key = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        bundle = make_bundle(Path(folder) / "bundle", key)
        Orders.bundle, Orders.folder = bundle, tempfile.TemporaryDirectory(dir=folder)
        Orders.updates = {
            (version, hours): update_of(bundle, key, version, hours)
            for version in range(1, 6)
            for hours in (0.5, 10.0**5)
        }
        case = Orders.TestCase()
        case.settings = settings(
            max_examples=20, stateful_step_count=12, deadline=None, suppress_health_check=list(HealthCheck)
        )
        case.runTest()
