"""Updates with weights and biases apart from statistics, and the devices that can fold them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from edge_device import Device
from edge_support import (
    CHANNELS,
    LAYERS,
    Cloud,
    FakeTime,
    Update,
    folded,
    images,
    make_bundle,
    make_bundle_with_statistics,
    make_update,
    norm_state,
    reference,
    some_statistics,
)

from cema.edge.runtime import Active, pack_payload
from cema.errors import FormatError
from cema.formats.bundle import Bundle
from cema.formats.payload import Payload, encode_payload, round_norm_state

LEARNED = some_statistics(seed=3)
CLOSE: dict[str, Any] = {"rtol": 1e-3, "atol": 1e-3}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, key: Ed25519PrivateKey) -> Bundle:
    return make_bundle_with_statistics(tmp_path_factory.mktemp("bundle") / "small", key)


@pytest.fixture
def device(bundle: Bundle, cloud: Cloud, quick_path: Path) -> Iterator[Device]:
    device = Device(bundle, cloud, quick_path / "state", FakeTime(seconds=time.time()))
    yield device
    device.stop()


def affine(seed: int = 4) -> dict[str, np.ndarray]:
    return round_norm_state(norm_state(seed, spread=0.4))


def unfolded_update(
    bundle: Bundle,
    key: Ed25519PrivateKey,
    version: int = 3,
    *,
    state: dict[str, np.ndarray] | None = None,
    statistics: np.ndarray | None = None,
    golden_with: np.ndarray | None = None,
) -> Update:
    """An update whose golden logits are computed in float64, with the bundle's statistics or with others."""
    state = affine() if state is None else state
    source = some_statistics() if golden_with is None else golden_with
    golden = reference(folded(state, source), bundle.golden_images).astype(np.float32)
    payload = encode_payload(state, golden, unfolded=True, statistics=statistics)
    return make_update(bundle, key, version, payload=payload)


def runs(device: Device, statistics: np.ndarray) -> bool:
    """Tell whether the device answers as `affine` does with these statistics."""
    batch = images(6, 5)
    got = device.active.runtime.run(device.bundle.manifest.preprocessing(batch))
    return np.allclose(got, reference(folded(affine(), statistics), batch), **CLOSE)


def test_a_device_folds_its_bundles_statistics_into_an_update(
    device: Device, cloud: Cloud, bundle: Bundle, key: Ed25519PrivateKey
) -> None:
    update = unfolded_update(bundle, key)
    cloud.publish(update)
    device.poll()
    for _ in range(2):  # also after a restart
        assert device.active.version == 3
        assert runs(device, some_statistics())
        assert not runs(device, LEARNED)
        assert device.active.affine is not None
        assert all(np.array_equal(device.active.affine[k], v) for k, v in affine().items())
        assert device.active.statistics is None
        device.restart()
    assert device.rejected == {}


def test_statistics_that_came_with_an_update_serve_and_the_bundles_are_tried(
    device: Device, cloud: Cloud, bundle: Bundle, key: Ed25519PrivateKey
) -> None:
    cloud.publish(unfolded_update(bundle, key, statistics=LEARNED))
    device.poll()
    assert device.active.version == 3
    assert runs(device, LEARNED)
    assert not runs(device, some_statistics())
    np.testing.assert_allclose(device.active.statistics, LEARNED, rtol=1e-3, atol=1e-3)
    device.restart()
    assert runs(device, LEARNED)


def test_golden_logits_with_other_statistics_than_the_bundles_are_wrong(
    device: Device, cloud: Cloud, bundle: Bundle, key: Ed25519PrivateKey
) -> None:
    cloud.publish(unfolded_update(bundle, key, statistics=LEARNED, golden_with=LEARNED))
    device.poll()
    assert device.active.version == 0
    assert device.rejected == {"golden_mismatch": 1}


def test_a_folded_update_runs_as_it_came_where_the_bundle_has_statistics(
    device: Device, cloud: Cloud, bundle: Bundle, key: Ed25519PrivateKey
) -> None:
    cloud.publish(unfolded_update(bundle, key, 2))
    device.poll()
    cloud.publish(make_update(bundle, key, 3))
    device.poll()
    assert device.serves(3)
    assert (device.active.affine, device.active.statistics) == (None, None)


def older_format(bundle: Bundle) -> Bundle:
    """Return the bundle as an earlier version wrote it."""
    fields = json.loads((bundle.path / "manifest.json").read_bytes())
    for name in ("model_graph", "statistics", "statistics_graph", "mean_logits"):
        del fields[name]
    (bundle.path / "manifest.json").write_text(json.dumps(fields | {"format": "cema.bundle/1"}))
    return Bundle.load(bundle.path)


@pytest.mark.parametrize("form", ["cema.bundle/1", "cema.bundle/2"])
def test_a_device_without_statistics_refuses_it_and_says_what_to_do(
    cloud: Cloud, key: Ed25519PrivateKey, quick_path: Path, form: str
) -> None:
    plain = make_bundle(quick_path / "plain", key)
    plain = older_format(plain) if form == "cema.bundle/1" else plain
    assert plain.manifest.format == form
    device = Device(plain, cloud, quick_path / "state", FakeTime(seconds=time.time()))
    cloud.publish(unfolded_update(plain, key))
    device.poll(2)
    assert device.active.version == 0
    assert device.rejected == {"malformed": 1}
    assert device.updater.last_error is not None
    assert "export the bundle again" in device.updater.last_error
    cloud.publish(make_update(plain, key, 4))
    device.poll()
    assert device.serves(4)
    device.stop()


LARGE = {key: np.full_like(value, 3e38) for key, value in norm_state().items()}
HALF = {key: value for key, value in affine().items() if key.endswith(".scale")}
MORE = affine() | {"bn9.scale": np.ones(3, np.float32)}
FLAT = np.stack([np.zeros(sum(CHANNELS)), np.zeros(sum(CHANNELS))]).astype(np.float32)


@pytest.mark.parametrize(
    "payload",
    [
        Payload(LARGE, np.zeros((4, 10), np.float32), unfolded=True),
        Payload(HALF, np.zeros((4, 10), np.float32), unfolded=True),
        Payload(MORE, np.zeros((4, 10), np.float32), unfolded=True),
        Payload(affine(), np.zeros((4, 10), np.float32), unfolded=True, statistics=LEARNED[:, 1:]),
        Payload(
            {key: value * np.float32(1e37) for key, value in affine().items()},
            np.zeros((4, 10), np.float32),
            unfolded=True,
            statistics=FLAT,
        ),
    ],
    ids=["overflow", "half", "more", "other size", "overflow with its own"],
)
def test_what_does_not_fit_is_refused_before_anything_is_built(
    device: Device, cloud: Cloud, bundle: Bundle, key: Ed25519PrivateKey, payload: Payload
) -> None:
    with pytest.raises(FormatError):
        pack_payload(bundle, payload)
    data = encode_payload(
        payload.norm_state, payload.golden_logits, unfolded=True, statistics=payload.statistics
    )
    cloud.publish(make_update(bundle, key, 3, payload=data))
    device.poll()
    assert device.active.version == 0
    assert device.rejected == {"malformed": 1}


def test_statistics_with_which_the_model_answers_nothing_are_refused(
    device: Device, cloud: Cloud, bundle: Bundle, key: Ed25519PrivateKey
) -> None:
    far = LEARNED.copy()
    far[0, LAYERS[0].size :] = -3e37  # of the first layer: what comes out of it overflows in the next
    cloud.publish(unfolded_update(bundle, key, statistics=far))
    device.poll()
    assert device.active.version == 0
    assert device.rejected == {"golden_mismatch": 1}


def test_what_serves_can_be_compared(bundle: Bundle, device: Device) -> None:
    one = Active(device.active.runtime, 1, affine=affine(), statistics=LEARNED)
    other = Active(device.active.runtime, 1, affine=affine(), statistics=LEARNED)
    assert one == other
    assert hash(one) == hash(other)
