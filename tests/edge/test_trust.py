"""A device whose bundle trusts one key, and keys that come and go."""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from edge_device import Device
from edge_support import Answer, Cloud, FakeTime, make_update

from cema.edge.state import StateFolder
from cema.formats.bundle import Bundle
from keys_documents import make_keys

B = Ed25519PrivateKey.from_private_bytes(b"b" * 32)
C = Ed25519PrivateKey.from_private_bytes(b"c" * 32)
HOUR = 4000.0


@pytest.fixture
def device(bundle: Bundle, cloud: Cloud, quick_path: Path) -> Iterator[Device]:
    device = Device(bundle, cloud, quick_path / "state", FakeTime(seconds=time.time()))
    yield device
    device.stop()


def later(device: Device) -> None:
    """Let the time pass until the device asks for keys again; updates outlive it."""
    device.time.seconds += HOUR


def test_keys_are_exchanged_while_updates_are_installed_throughout(
    device: Device, cloud: Cloud, bundle: Bundle, key: Ed25519PrivateKey
) -> None:
    far = int(time.time()) + 10**6
    cloud.publish(make_update(bundle, key, 1, expires=far))
    device.poll()
    assert device.serves(1)
    # An update of a key that is not known makes the device ask at once.
    cloud.keys = [make_keys(1, [key, B], [key], expires=far)]
    cloud.publish(make_update(bundle, B, 2, expires=far))
    device.poll()
    assert device.serves(2)
    assert device.rejected == {}
    cloud.keys.append(make_keys(2, [B], [key, B], expires=far))
    later(device)
    device.poll()
    device.restart()
    assert device.serves(2)
    cloud.publish(make_update(bundle, key, 3, expires=far))
    device.poll()
    assert device.serves(2)
    assert device.rejected == {"unknown_key": 1}
    cloud.publish(make_update(bundle, B, 4, expires=far))
    device.poll()
    assert device.serves(4)
    cloud.keys.append(make_keys(3, [B], [B], [key], expires=far))
    later(device)
    device.poll()
    assert device.serves(4)
    device.restart()
    assert device.serves(4)


def test_a_retired_key_s_update_goes_on_and_a_revoked_key_s_ends(
    device: Device, cloud: Cloud, bundle: Bundle, key: Ed25519PrivateKey
) -> None:
    far = int(time.time()) + 10**6
    cloud.publish(make_update(bundle, key, 7, expires=far))
    device.poll()
    cloud.keys = [make_keys(1, [key, B], [key], expires=far), make_keys(2, [B], [B], expires=far)]
    later(device)
    device.poll()
    assert device.serves(7)
    device.restart()
    assert device.serves(7)
    assert device.resumed.floor == 7
    cloud.keys.append(make_keys(3, [B], [B], [key], expires=far))
    later(device)
    device.poll()
    assert device.serves(0)
    assert device.rejected == {"revoked_key": 1}
    assert "revoked_key" in (device.updater.last_error or "")
    device.restart()
    assert device.serves(0)
    assert "revoked_key" in (device.resumed.error or "")
    # Whoever had the key may have made a version of any number: it holds nothing up.
    cloud.publish(make_update(bundle, B, 3, expires=far))
    device.poll()
    assert device.serves(3)
    device.restart()
    assert device.serves(3)


def test_a_revoked_key_s_update_is_refused_before_it_is_ever_installed(
    device: Device, cloud: Cloud, bundle: Bundle, key: Ed25519PrivateKey
) -> None:
    cloud.keys = [make_keys(1, [B], [key, B]), make_keys(2, [B], [B], [key])]
    cloud.publish(make_update(bundle, key, 9))
    device.poll()
    assert device.serves(0)
    assert device.rejected == {"revoked_key": 1}


def test_a_cloud_without_keys_documents_changes_nothing(
    device: Device, cloud: Cloud, bundle: Bundle, key: Ed25519PrivateKey
) -> None:
    cloud.publish(make_update(bundle, key, 1))
    device.poll(3)
    assert device.serves(1)
    assert device.updater.last_error is None
    assert cloud.keys_asked == 1
    later(device)
    device.poll()
    assert cloud.keys_asked == 2


def test_updates_go_on_while_nothing_answers_about_keys(
    device: Device, cloud: Cloud, bundle: Bundle, key: Ed25519PrivateKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cema.edge.retry import LinkError

    def fail(etag: str | None) -> None:
        raise LinkError("nobody answers")

    monkeypatch.setattr(device.link, "keys", fail)
    cloud.publish(make_update(bundle, key, 1))
    device.poll()
    assert device.serves(1)


@pytest.mark.parametrize(
    "body", [b"", b"{}", b"no json", b"[" * 10**5, b'{"documents":[{}]}', b"x" * (2 << 20)]
)
def test_an_answer_that_is_no_list_of_documents_is_counted_once(
    device: Device, cloud: Cloud, body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cema.edge.client import Reply

    monkeypatch.setattr(device.link, "keys", lambda etag: Reply(200, {}, body))
    for _ in range(3):
        later(device)
        device.poll()
    assert device.spool.grouped("rejected_keys.") == {"malformed": 1}


def test_older_documents_are_refused_also_after_a_restart(
    device: Device, cloud: Cloud, bundle: Bundle, key: Ed25519PrivateKey
) -> None:
    far = int(time.time()) + 10**6
    first, second = make_keys(1, [key, B], [key], expires=far), make_keys(2, [B], [B], expires=far)
    cloud.keys = [first, second]
    device.poll()
    for restarted in (False, True):
        if restarted:
            device.restart()
        # The first alone is known; another of its number is not.
        for offered in (
            [first],
            [make_keys(1, [key, C], [B], expires=far)],
            [make_keys(2, [C], [B], expires=far)],
        ):
            cloud.keys = offered
            later(device)
            device.poll()
            assert device.updater._trust.keyring.serial == 2
    assert device.spool.grouped("rejected_keys.") == {"old": 4}


def test_documents_of_another_cohort_are_not_lost_when_the_device_comes_back(
    device: Device, cloud: Cloud, bundle: Bundle, key: Ed25519PrivateKey
) -> None:
    cloud.keys = [make_keys(1, [B], [key])]
    device.poll()
    device.cohort = "south"
    device.restart()
    cloud.keys = []
    assert device.updater._trust.keyring.serial == 0
    device.cohort = "north"
    device.restart()
    assert device.updater._trust.keyring.serial == 1


def test_a_revocation_counts_at_once_and_is_remembered_when_the_disk_takes_it(
    device: Device, cloud: Cloud, bundle: Bundle, key: Ed25519PrivateKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    cloud.publish(make_update(bundle, key, 5))
    device.poll()
    cloud.keys = [make_keys(1, [B], [key, B], expires=int(time.time()) + 10**6)]
    cloud.keys.append(make_keys(2, [B], [B], [key], expires=int(time.time()) + 10**6))

    def full(self: StateFolder, keyring: object) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    with monkeypatch.context() as patch:
        patch.setattr(StateFolder, "save_keyring", full)
        later(device)
        device.poll()
        assert device.serves(0)
    device.poll()
    device.restart()
    assert device.updater._trust.keyring.serial == 2


@pytest.mark.parametrize("damage", [b"", b"damaged", b'{"documents":[{"a":1}]}'])
def test_damaged_documents_are_told_and_asked_for_again(
    device: Device, cloud: Cloud, key: Ed25519PrivateKey, damage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    cloud.keys = [make_keys(1, [B], [key])]
    device.poll()
    (file,) = device.folder.glob("keys-*.json")
    file.write_bytes(damage)
    caplog.set_level(logging.WARNING)
    device.restart()
    assert "keys" in caplog.text
    device.poll()
    assert device.updater._trust.keyring.serial == 1
    device.restart()
    assert device.updater._trust.keyring.serial == 1


def test_an_expired_document_is_refused_and_one_that_expires_later_stays(
    device: Device, cloud: Cloud, key: Ed25519PrivateKey
) -> None:
    cloud.keys = [make_keys(1, [key, B], [key], expires=int(time.time()) + 10)]
    later(device)
    device.poll()
    assert device.spool.grouped("rejected_keys.") == {"expired": 1}
    cloud.keys = [make_keys(1, [key, B], [key], expires=int(device.time.seconds) + 10_000)]
    later(device)
    device.poll()
    device.time.seconds += 10**8
    device.restart()
    assert device.updater._trust.keyring.serial == 1


def test_a_refused_answer_is_read_again(device: Device, cloud: Cloud, key: Ed25519PrivateKey) -> None:
    clock = device.time.seconds
    cloud.keys = [make_keys(1, [key, B], [key], expires=int(clock) + 5000)]
    device.time.seconds = clock + 6000
    device.poll()
    assert device.updater._trust.keyring.serial == 0
    # Time goes on for pauses while the clock is set back.
    device.updater._trust._clock = replace(device.time.clock, now=lambda: clock)
    later(device)
    device.poll()
    assert device.updater._trust.keyring.serial == 1


def test_a_failing_poll_is_no_reason_to_ask_for_keys_again(device: Device, cloud: Cloud) -> None:
    cloud.script.extend([Answer(500)] * 4)
    device.poll(4)
    assert cloud.keys_asked == 1
