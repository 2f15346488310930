"""What becomes of updates while their signatures come from elsewhere, late or not at all."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import msgspec
import pytest
from signing_command import command
from worker_cloud import Cloud, drain

from cema.cloud.signing.config import SigningKeyConfig
from cema.cloud.store.control import Pause, Stop
from cema.cloud.worker.unsigned import FIRST_DELAY, LONGEST_DELAY, Unsigned
from cema.errors import ConfigError, SigningError, UpdateRejected
from cema.formats.bundle import Bundle
from cema.formats.keys import generate_key, key_id, load_public_key
from cema.formats.update import UpdateManifest, verify_update


@pytest.fixture
def mode(cloud: Cloud) -> Path:
    """A file: what it says is what the cohort's signing command does from then on."""
    path = cloud.folder / "mode"
    path.write_text("well")
    key = SigningKeyConfig(
        command=command(cloud.folder / "signing.key", path),
        public_key=str(cloud.folder / "signing.pub"),
        timeout_seconds=30.0,
    )
    cloud.config = msgspec.structs.replace(cloud.config, signing_key=None, signing_keys=(key,))
    cloud.publish(every_steps=1, gate=1.0)  # every step makes a candidate
    return path


def verified(cloud: Cloud, *keys: str) -> UpdateManifest:
    update = cloud.store.latest_update("north")
    assert update is not None
    public = [load_public_key(cloud.folder / f"{name}.pub") for name in keys or ("signing",)]
    return verify_update(
        update.envelope,
        public_keys={key_id(key): key for key in public},
        cohort="north",
        base=Bundle.load(cloud.folder / "bundle").manifest.base,
        running_version=0,
        now=cloud.now,
    )


def test_a_command_signs_what_devices_accept(cloud: Cloud, mode: Path) -> None:
    worker = cloud.open()
    cloud.send(16)
    drain(worker)
    assert verified(cloud).version == 1


def test_a_signer_that_fails_costs_no_step_and_the_update_follows(cloud: Cloud, mode: Path) -> None:
    worker = cloud.open()
    mode.write_text("refuses")
    cloud.send(16)
    drain(worker)
    assert cloud.store.latest_update("north") is None
    assert cloud.store.status("north")["cursor"] == 16
    assert (cloud.counters()["steps.count"], cloud.counters()["updates.unsigned"]) == (1, 1)
    assert "ended with status 3" in worker.report()["unsigned"]
    # Before its time nothing is tried: other samples are learned from all the same.
    cloud.send(16)
    drain(worker)
    assert cloud.counters()["updates.unsigned"] == 1
    assert cloud.store.status("north")["cursor"] == 32
    mode.write_text("well")
    cloud.now += FIRST_DELAY
    cloud.send(16)
    drain(worker)
    assert verified(cloud).version == 1
    assert cloud.counters()["updates.published"] == 1
    assert "unsigned" not in worker.report()


def test_what_could_not_be_signed_is_signed_later_without_another_sample(cloud: Cloud, mode: Path) -> None:
    worker = cloud.open()
    mode.write_text("refuses")
    cloud.send(16)
    drain(worker)
    for tries in (2, 3):
        cloud.now += LONGEST_DELAY
        assert drain(worker) == 1
        assert cloud.counters()["updates.unsigned"] == tries
    mode.write_text("well")
    assert drain(worker) == 0  # not yet
    cloud.now += LONGEST_DELAY
    assert drain(worker) == 1
    assert verified(cloud).version == 1
    assert cloud.counters()["updates.published"] == 1
    trace = cloud.store.trace("north", 1)
    assert trace is not None
    assert trace["kind"] == "learned"
    assert drain(worker) == 0


def test_a_renewal_waits_for_its_signature_too(cloud: Cloud, mode: Path) -> None:
    worker = cloud.open()
    cloud.send(16)
    drain(worker)
    first = verified(cloud)
    cloud.now += 16 * 86_400
    mode.write_text("refuses")
    assert drain(worker) == 1
    assert verified(cloud) == first
    mode.write_text("well")
    cloud.now += FIRST_DELAY
    assert drain(worker) == 1
    assert (verified(cloud).version, verified(cloud).payload) == (2, first.payload)


def test_a_worker_that_starts_again_loses_nothing_but_the_candidate(cloud: Cloud, mode: Path) -> None:
    mode.write_text("refuses")
    cloud.send(16)
    drain(cloud.open())
    mode.write_text("well")
    worker = cloud.open()
    assert worker.cursor == 16
    cloud.send(16)
    drain(worker)
    assert verified(cloud).version == 1


def test_two_keys_sign_and_a_device_that_trusts_either_accepts(cloud: Cloud) -> None:
    generate_key(cloud.folder / "next.key")
    generate_key(cloud.folder / "third.key")
    key = SigningKeyConfig(key=str(cloud.folder / "next.key"))
    cloud.config = msgspec.structs.replace(cloud.config, signing_keys=(key,))
    cloud.publish(every_steps=1, gate=1.0)
    worker = cloud.open()
    cloud.send(16)
    drain(worker)
    assert verified(cloud, "signing") == verified(cloud, "next") == verified(cloud, "signing", "next")
    with pytest.raises(UpdateRejected, match="unknown_key"):
        verified(cloud, "third")
    update = cloud.store.latest_update("north")
    assert update is not None
    signed = [item["key"] for item in json.loads(update.envelope)["signatures"]]
    assert signed == [key_id(load_public_key(cloud.folder / f"{name}.pub")) for name in ("signing", "next")]


def test_other_keys_sign_the_newest_payload_again_at_the_next_start(cloud: Cloud) -> None:
    cloud.publish(every_steps=1, gate=1.0)
    worker = cloud.open()
    cloud.send(16)
    drain(worker)
    first = verified(cloud)
    assert drain(cloud.open()) == 0  # the same keys
    generate_key(cloud.folder / "next.key")
    key = SigningKeyConfig(key=str(cloud.folder / "next.key"))
    cloud.config = msgspec.structs.replace(cloud.config, signing_keys=(key,))
    worker = cloud.open()
    assert drain(worker) == 1
    again = verified(cloud, "next")
    assert (again.version, again.payload) == (first.version + 1, first.payload)
    assert drain(worker) == 0


def test_keys_of_which_devices_trust_none_are_refused(cloud: Cloud) -> None:
    generate_key(cloud.folder / "next.key")
    cloud.config = msgspec.structs.replace(cloud.config, signing_key=str(cloud.folder / "next.key"))
    with pytest.raises(ConfigError, match="would refuse every update"):
        cloud.open()


def test_the_time_between_two_tries_doubles_and_a_clock_that_was_set_back_does_not_stretch_it() -> None:
    unsigned = Unsigned()
    assert unsigned.may_try(0.0)
    now, waits = 1000.0, []
    for _ in range(9):
        unsigned.failed("published", b"x", now, SigningError("no"))
        waits.append(next(s for s in range(1000) if unsigned.may_try(now + s)))
        now += waits[-1]
    assert waits == [5, 10, 20, 40, 80, 160, 300, 300, 300]
    assert unsigned.may_try(0.0)
    unsigned.forget()
    assert (unsigned.waiting, unsigned.problem) == (None, "no")
    unsigned.succeeded()
    assert unsigned.may_try(now)
    assert unsigned.problem is None


def test_an_act_waits_for_its_signature_and_nothing_else_is_published_meanwhile(
    cloud: Cloud, mode: Path
) -> None:
    worker = cloud.open()
    cloud.send(16)
    drain(worker)
    first = verified(cloud)
    mode.write_text("refuses")
    cloud.send(16)
    drain(worker)  # a candidate that could not be signed
    cloud.store.act("north", Stop(), actor="ann", now=cloud.now)
    for _ in range(3):
        cloud.now += LONGEST_DELAY
        cloud.send(16)
        drain(worker)
    assert verified(cloud) == first
    assert cloud.store.backlog("north").samples == 0, "it goes on learning"
    assert cloud.store.acts("north")[0].state == "waiting"
    mode.write_text("well")
    cloud.now += LONGEST_DELAY
    drain(worker)
    act = cloud.store.acts("north")[0]
    assert (act.state, act.version) == ("done", 2)
    assert (verified(cloud).version, verified(cloud).payload != first.payload) == (2, True)
    source = worker.publisher.source_payload()
    assert verified(cloud).payload == hashlib.sha256(source).hexdigest()


def test_what_could_not_be_signed_before_a_pause_is_not_published_under_it(cloud: Cloud, mode: Path) -> None:
    worker = cloud.open()
    mode.write_text("refuses")
    cloud.send(16)
    drain(worker)
    cloud.store.act("north", Pause(), actor="ann", now=cloud.now)
    mode.write_text("well")
    cloud.now += LONGEST_DELAY
    drain(worker)
    assert cloud.store.latest_update("north") is None
