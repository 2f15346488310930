from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import safetensors.numpy
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from edge_device import Device
from edge_support import (
    CLASSES,
    Answer,
    Cloud,
    FakeTime,
    Update,
    make_update,
    norm_state,
    reference,
)

from cema.edge.state import StateFolder
from cema.formats.bundle import Bundle
from cema.formats.payload import encode_payload, round_norm_state
from cema.ondevice.drift import Domain


@pytest.fixture
def device(bundle: Bundle, cloud: Cloud, quick_path: Path) -> Iterator[Device]:
    import time

    device = Device(bundle, cloud, quick_path / "state", FakeTime(seconds=time.time()))
    yield device
    device.stop()


@pytest.fixture
def update(bundle: Bundle, key: Ed25519PrivateKey) -> Update:
    return make_update(bundle, key, 3)


def test_the_norm_state_of_an_update_is_packed_once(
    device: Device, cloud: Cloud, update: Update, monkeypatch: Any
) -> None:
    cloud.publish(update)
    packed: list[int] = []
    pack = Bundle.pack_norm

    def count(self: Bundle, norm_state: Any) -> bytes:
        packed.append(len(norm_state))
        return pack(self, norm_state)

    monkeypatch.setattr(Bundle, "pack_norm", count)
    device.poll()
    assert device.active.version == 3
    assert len(packed) == 1


def test_a_renewal_of_what_runs_is_remembered_and_neither_fetched_nor_built(
    device: Device, cloud: Cloud, bundle: Bundle, key: Ed25519PrivateKey, monkeypatch: Any
) -> None:
    update = make_update(bundle, key, 3)
    cloud.publish(update)
    device.poll()
    runtime = device.active.runtime
    later = int(device.time.seconds) + 90 * 86_400
    renewal = make_update(bundle, key, 4, payload=update.payload, expires=later)
    cloud.publish(renewal)
    cloud.artifacts.clear()
    requests = len(cloud.requests)
    with monkeypatch.context() as patch:
        patch.setattr("cema.edge.updater.build_active", lambda *_, **__: pytest.fail("it was built again"))
        device.poll(2)
    assert [path.rsplit("/", 1)[-1] for _, path, _ in cloud.requests[requests:]] == ["latest", "latest"]
    assert device.updater.last_error is None
    assert (device.active.version, device.active.digest) == (4, update.manifest.payload)
    assert device.active.runtime is runtime
    assert device.spool.counters()["swaps"] == 1
    # Its number and its longer life are remembered; what it renewed is old.
    device.time.seconds += 30 * 86_400
    device.restart()
    assert device.resumed.floor == device.active.version == 4
    cloud.publish(update)
    device.poll()
    assert device.active.version == 4
    assert device.rejected != {}


def test_a_renewal_after_a_restart_builds_nothing_either(
    device: Device, cloud: Cloud, bundle: Bundle, key: Ed25519PrivateKey, update: Update
) -> None:
    cloud.publish(update)
    device.poll()
    device.restart()
    runtime = device.active.runtime
    cloud.publish(make_update(bundle, key, 9, payload=update.payload))
    cloud.artifacts.clear()
    device.poll()
    assert device.active.version == 9
    assert device.active.runtime is runtime


@pytest.mark.parametrize("damage", [None, b"", b"damaged"])
def test_a_renewal_mends_a_payload_that_was_lost_on_the_disk(
    device: Device, cloud: Cloud, bundle: Bundle, key: Ed25519PrivateKey, damage: bytes | None
) -> None:
    update = make_update(bundle, key, 3)
    cloud.publish(update)
    device.poll()
    (file,) = device.folder.glob("update-*.bin")
    if damage is None:
        file.unlink()
    else:
        file.write_bytes(damage)
    cloud.publish(make_update(bundle, key, 4, payload=update.payload))
    device.poll()
    assert device.active.version == 4
    assert file.read_bytes() == update.payload
    device.restart()
    assert device.active.version == 4


def test_a_renewal_that_lies_about_its_payload_is_refused(
    device: Device, cloud: Cloud, bundle: Bundle, key: Ed25519PrivateKey, update: Update
) -> None:
    cloud.publish(update)
    device.poll()
    size = len(update.payload) + 1
    cloud.publish(make_update(bundle, key, 4, payload=update.payload, payload_bytes=size))
    device.poll()
    assert device.serves(3)
    assert device.rejected == {"payload_mismatch": 1}


def test_a_renewal_that_cannot_be_remembered_does_not_count(
    device: Device, cloud: Cloud, bundle: Bundle, key: Ed25519PrivateKey, monkeypatch: Any
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    update = make_update(bundle, key, 3)
    cloud.publish(update)
    device.poll()
    cloud.publish(make_update(bundle, key, 4, payload=update.payload))
    with monkeypatch.context() as patch:
        patch.setattr("cema.edge.state.write_atomic", full)
        device.poll()
    assert device.active.version == 3
    device.poll()
    assert device.active.version == 4


def test_without_an_update_the_bundles_model_serves(device: Device) -> None:
    assert 9 <= device.poll() <= 11
    assert device.serves(0)
    assert device.updater.last_error is None


def test_an_update_is_fetched_once_and_serves(device: Device, cloud: Cloud, update: Update) -> None:
    cloud.publish(update)
    assert 9 <= device.poll(3) <= 11
    assert device.serves(3)
    assert device.active.digest == update.manifest.payload
    paths = [path.rsplit("/", 2)[-2] for _, path, _ in cloud.requests]
    assert paths == ["updates", "artifacts", "updates", "updates"]
    assert cloud.requests[-1][2]["If-None-Match"] == update.etag
    counters = device.spool.counters()
    assert counters == {"bytes_down": len(update.envelope) + len(update.payload), "swaps": 1}


def test_versions_may_be_skipped(
    device: Device, cloud: Cloud, bundle: Bundle, key: Ed25519PrivateKey
) -> None:
    for version in (1, 5, 6):
        cloud.publish(make_update(bundle, key, version))
        device.poll()
        assert device.serves(version)


def _nan_payload(bundle: Bundle) -> bytes:
    state = round_norm_state(norm_state(3))
    good = encode_payload(state, reference(state, bundle.golden_images).astype(np.float32))
    tensors = safetensors.numpy.load(good)
    tensors["bn0.scale"] = tensors["bn0.scale"].copy()
    tensors["bn0.scale"][2] = np.nan
    return safetensors.numpy.save(tensors, metadata={"format": "cema.payload/1"})


def _other_model(bundle: Bundle) -> bytes:
    state = {"elsewhere.scale": np.ones(4, np.float32), "elsewhere.shift": np.zeros(4, np.float32)}
    return encode_payload(state, bundle.golden_logits)


def _other_statistics(bundle: Bundle) -> bytes:
    state = round_norm_state(norm_state(3))
    golden = reference(state, bundle.golden_images).astype(np.float32)
    strange = Domain(np.zeros(3, np.float32), np.eye(3, dtype=np.float32))
    return encode_payload(state, golden, domain=strange)


def _resigned(good: Update, **changes: Any) -> Update:
    """The envelope with other content than was signed."""
    return replace(good, envelope=msgspec.json.encode(msgspec.json.decode(good.envelope) | changes))


def _flipped(data: bytes) -> bytes:
    return data[:-9] + bytes([data[-9] ^ 1]) + data[-8:]


def _manifest(update: Update) -> str:
    return str(msgspec.json.decode(update.envelope)["manifest"])


STRANGER = Ed25519PrivateKey.from_private_bytes(bytes(32))
WRONG = np.zeros((4, CLASSES), np.float32)
BAD: dict[str, tuple[str, Callable[[Bundle, Ed25519PrivateKey, Update], Update]]] = {
    "unsigned": ("unsigned", lambda b, k, good: _resigned(good, signatures=[])),
    "unknown key": ("unknown_key", lambda b, k, good: make_update(b, STRANGER, 3)),
    "bad signature": (
        "bad_signature",
        lambda b, k, good: _resigned(good, manifest=_manifest(make_update(b, k, 4))),
    ),
    "expired": ("expired", lambda b, k, good: make_update(b, k, 3, expires=good.manifest.created + 1)),
    "old": ("old", lambda b, k, good: make_update(b, k, 1)),
    "equal": ("old", lambda b, k, good: make_update(b, k, 2, golden=WRONG)),
    "wrong base": ("wrong_base", lambda b, k, good: make_update(b, k, 3, base="ab" * 32)),
    "wrong cohort": ("wrong_cohort", lambda b, k, good: make_update(b, k, 3, cohort="south")),
    "tampered": ("payload_mismatch", lambda b, k, good: replace(good, payload=_flipped(good.payload))),
    "truncated": ("payload_mismatch", lambda b, k, good: replace(good, payload=good.payload[:-7])),
    "nan": ("malformed", lambda b, k, good: make_update(b, k, 3, payload=_nan_payload(b))),
    "other layers": ("malformed", lambda b, k, good: make_update(b, k, 3, payload=_other_model(b))),
    "other statistics": (
        "malformed",
        lambda b, k, good: make_update(b, k, 3, payload=_other_statistics(b)),
    ),
    "golden": ("golden_mismatch", lambda b, k, good: make_update(b, k, 3, golden=WRONG)),
    "golden shape": ("golden_mismatch", lambda b, k, good: make_update(b, k, 3, golden=WRONG[:2])),
    "text": ("malformed", lambda b, k, good: replace(good, envelope=b"accept our terms")),
}


def _bad(kind: str, bundle: Bundle, key: Ed25519PrivateKey) -> tuple[Update, str]:
    reason, make = BAD[kind]
    return make(bundle, key, make_update(bundle, key, 3)), reason


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_update_never_runs(
    device: Device, cloud: Cloud, bundle: Bundle, key: Ed25519PrivateKey, kind: str
) -> None:
    cloud.publish(make_update(bundle, key, 2))
    device.poll()
    remembered = (device.folder / "update.json").read_bytes()
    bad, reason = _bad(kind, bundle, key)
    cloud.publish(bad)
    device.poll(3)
    assert device.serves(2)
    assert device.rejected == {reason: 1}, "one rejection, however often it is seen"
    assert device.updater.last_error is not None
    assert f"({reason})" in device.updater.last_error
    assert (device.folder / "update.json").read_bytes() == remembered
    device.restart()
    assert device.serves(2)
    cloud.publish(make_update(bundle, key, 7))  # and a good one still comes through
    device.poll()
    assert device.serves(7)
    assert device.updater.last_error is None


def test_a_hopeless_update_is_not_downloaded_again(
    device: Device, cloud: Cloud, bundle: Bundle, key: Ed25519PrivateKey
) -> None:
    cloud.publish(_bad("golden", bundle, key)[0])
    device.poll(5)
    assert sum("/artifacts/" in path for _, path, _ in cloud.requests) == 1


def test_a_damaged_download_is_tried_again(device: Device, cloud: Cloud, update: Update) -> None:
    cloud.publish(replace(update, payload=update.payload[:-1] + b"x"))
    device.poll(2)
    assert device.serves(0)
    cloud.publish(update)
    device.poll()
    assert device.serves(3)
    assert device.updater.last_error is None


def test_more_bytes_than_signed_are_not_even_read(device: Device, cloud: Cloud, update: Update) -> None:
    cloud.publish(replace(update, payload=update.payload + bytes(20 << 20)))
    device.poll()
    assert device.rejected == {"payload_mismatch": 1}
    assert device.spool.counters()["bytes_down"] <= len(update.envelope) + len(update.payload) + 1


def test_a_missing_artifact_backs_off_and_heals(device: Device, cloud: Cloud, update: Update) -> None:
    cloud.publish(update)
    cloud.artifacts.clear()
    assert device.poll(3) >= 150
    assert "404" in (device.updater.last_error or "")
    cloud.publish(update)
    device.poll()
    assert device.serves(3)


def test_failures_back_off_and_keep_serving(device: Device, cloud: Cloud, update: Update) -> None:
    cloud.publish(update)
    cloud.script.extend([Answer(500), Answer(reset=True), Answer(503, {"Retry-After": "77"})])
    rng = random.Random(0)
    assert [device.poll(), device.poll()] == [rng.uniform(0, 1), rng.uniform(0, 2)]
    assert 77 <= device.poll() <= 78
    assert device.serves(0)
    device.poll()
    assert device.serves(3)


def test_a_refused_update_stays_an_error_after_a_failure_in_between(
    device: Device, cloud: Cloud, bundle: Bundle, key: Ed25519PrivateKey
) -> None:
    cloud.publish(_bad("golden", bundle, key)[0])
    device.poll()
    refused = device.updater.last_error
    cloud.script.append(Answer(500))
    device.poll()
    assert "500" in (device.updater.last_error or "")
    device.poll()
    assert device.updater.last_error == refused


def test_a_restart_resumes_and_refuses_what_is_older(
    device: Device, cloud: Cloud, bundle: Bundle, key: Ed25519PrivateKey, update: Update
) -> None:
    cloud.publish(update)
    device.poll()
    device.restart()
    assert device.serves(3)
    device.poll()
    assert device.updater.last_error is None, "the same update announced again is no news"
    assert device.rejected == {}
    cloud.publish(make_update(bundle, key, 2))
    device.poll()
    assert device.serves(3)
    assert device.rejected == {"old": 1}


def test_an_expired_update_goes_on_after_a_restart_but_cannot_be_installed(
    device: Device, cloud: Cloud, update: Update
) -> None:
    cloud.publish(update)
    device.poll()
    device.time.seconds += 30 * 86400
    device.restart()
    assert device.serves(3)
    device.stop()
    for file in device.folder.glob("update*"):
        file.unlink()
    device.start()
    device.poll()
    assert device.serves(0)
    assert device.rejected == {"expired": 1}


@pytest.mark.parametrize("damage", ["missing", "cut", "flipped"])
def test_a_damaged_memory_serves_the_bundle_and_keeps_the_floor(
    device: Device, cloud: Cloud, bundle: Bundle, key: Ed25519PrivateKey, damage: str
) -> None:
    update = make_update(bundle, key, 3)
    cloud.publish(update)
    device.poll()
    (file,) = device.folder.glob("update-*.bin")
    data = bytearray(file.read_bytes())
    if damage == "missing":
        file.unlink()
    else:
        data[200] ^= 1
        file.write_bytes(bytes(data) if damage == "flipped" else bytes(data[:100]))
    cloud.publish(make_update(bundle, key, 2))
    device.restart()
    assert device.serves(0)
    assert device.resumed.error is not None
    device.poll()
    assert device.serves(0)
    assert device.rejected == {"old": 1}, "version 3 was accepted once: 2 is older"
    cloud.publish(update)
    device.poll()
    assert device.serves(3), "the same version may be fetched again"


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b'{"envelope": 3}'])
def test_a_memory_that_is_no_memory_is_reported(device: Device, content: bytes) -> None:
    (device.folder / "update.json").write_bytes(content)
    device.restart()
    assert device.serves(0)
    assert "cannot be used" in (device.resumed.error or "")


def test_a_forged_memory_does_not_run(device: Device, bundle: Bundle) -> None:
    stranger = Ed25519PrivateKey.from_private_bytes(bytes(32))
    forged = make_update(bundle, stranger, 9)
    StateFolder(device.folder).save_update(forged.envelope, forged.manifest, forged.payload, 0.0)
    device.restart()
    assert device.serves(0)
    assert device.resumed.floor == 0


def test_an_update_that_cannot_be_remembered_does_not_serve(
    device: Device, cloud: Cloud, update: Update, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    cloud.publish(update)
    with monkeypatch.context() as patch:
        patch.setattr("cema.edge.state.write_atomic", full)
        device.poll()
    assert device.serves(0)
    assert "No space left" in (device.updater.last_error or "")
    device.poll()
    assert device.serves(3)


def test_only_one_payload_is_kept(device: Device, cloud: Cloud, bundle: Bundle, key: Any) -> None:
    for version in (1, 2, 3):
        cloud.publish(make_update(bundle, key, version))
        device.poll()
    assert len(list(device.folder.glob("update-*.bin"))) == 1


class Patient:
    """Answers of a cloud that keeps them back: each takes so many seconds of the device's clock."""

    def __init__(self, device: Device, seconds: float) -> None:
        self.seconds = seconds
        ask = device.link.latest_update

        def latest_update(etag: str | None, *, wait: float = 0.0, **more: Any) -> Any:
            reply = ask(etag, wait=wait, **more)
            device.time.seconds += min(self.seconds, wait)
            return reply

        device.link.latest_update = latest_update  # type: ignore[method-assign]


def test_a_cloud_that_waits_is_asked_again_at_once(device: Device, cloud: Cloud, update: Update) -> None:
    Patient(device, 30.0)
    assert device.poll() == 0.0
    assert device.poll() == 0.0
    cloud.publish(update)
    assert device.poll() == 0.0
    assert device.active.version == 3
    assert set(cloud.queries) == {"wait=20", ""}  # the payload without


def test_a_cloud_that_does_not_wait_is_polled(device: Device, cloud: Cloud, update: Update) -> None:
    assert 9 <= device.poll() <= 11
    cloud.publish(update)
    assert device.poll() == 1.0  # it had news: the next answer tells whether it waits
    assert 9 <= device.poll() <= 11
    assert device.active.version == 3


def test_news_all_the_time_are_asked_for_once_a_second_at_most(
    device: Device, cloud: Cloud, bundle: Bundle, key: Ed25519PrivateKey
) -> None:
    patient = Patient(device, 20.0)
    device.poll()
    patient.seconds = 0.0
    for version in range(1, 4):
        cloud.publish(make_update(bundle, key, version))
        assert device.poll() == 1.0
    assert device.active.version == 3
    bad = make_update(bundle, key, 4, cohort="south")
    cloud.publish(bad)
    assert device.poll() == 1.0
    cloud.script.append(Answer(body=bad.envelope))
    assert 9 <= device.poll() <= 11  # the same again is no news


def test_who_is_to_ask_rarely_does_not_wait(bundle: Bundle, cloud: Cloud, quick_path: Path) -> None:
    device = Device(bundle, cloud, quick_path / "rare", FakeTime(), poll_seconds=600.0)
    try:
        assert 540 <= device.poll() <= 660
        assert cloud.queries == [""]
    finally:
        device.stop()


def test_where_waiting_fails_it_is_given_up_for_a_time(device: Device, cloud: Cloud) -> None:
    cloud.script.append(Answer(status=504))
    device.poll()
    for _ in range(4):
        assert 9 <= device.poll() <= 11
    device.poll()
    assert cloud.queries == ["wait=20", "", "", "", "", "wait=20"]
    cloud.script.append(Answer(status=504))
    device.poll(1 + 8 + 1)
    assert cloud.queries[6:] == ["wait=20", *[""] * 8, "wait=20"]
    Patient(device, 20.0)
    device.poll()
    cloud.script.append(Answer(status=504))
    device.poll(1 + 4 + 1)
    assert cloud.queries[-6:] == ["wait=20", "", "", "", "", "wait=20"]


def test_after_an_upload_the_next_question_comes_soon(device: Device, cloud: Cloud) -> None:
    device.poll()
    assert len(cloud.requests) == 1
    device.link.on_sent()
    assert device.poll() == 5.0
    device.time.seconds += 2
    device.link.on_sent()
    assert device.poll() == 3.0
    assert len(cloud.requests) == 1
    device.time.seconds += 3
    assert 9 <= device.poll() <= 11
    assert len(cloud.requests) == 2


def test_a_device_that_waits_for_news_is_not_woken_by_its_uploads(device: Device, cloud: Cloud) -> None:
    Patient(device, 20.0)
    device.poll()
    device.link.on_sent()
    assert not device.updater._wake.is_set()
    device.poll()
    assert len(cloud.requests) == 2
