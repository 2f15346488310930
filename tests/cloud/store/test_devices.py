from __future__ import annotations

from pathlib import Path

import pytest
from cloud_support import write_config

from cema.cloud.config import CloudConfig
from cema.cloud.store.devices import Device, Devices
from cema.cloud.store.sqlite import Store
from cema.errors import StoreError


@pytest.fixture
def devices(store: Store) -> Devices:
    return Devices(store.database, ["north"])


def test_a_token_is_256_random_bits_and_only_its_hash_is_kept(devices: Devices, store: Store) -> None:
    tokens = {devices.add(f"d{i}", cohort="north") for i in range(20)}
    assert len(tokens) == 20
    assert all(len(token) == 43 for token in tokens)  # 32 bytes in base64url
    store.close()
    content = b"".join(path.read_bytes() for path in store.database.path.parent.iterdir())
    assert not [token for token in tokens if token.encode() in content]


def test_a_token_names_its_device_until_it_is_revoked_and_after(devices: Devices) -> None:
    token = devices.add("cam-1", cohort="north", now=5.0)
    assert devices.authenticate(token) == Device("cam-1", "device", "north", 5.0, None)
    assert devices.authenticate(token[:-1]) is None
    assert devices.authenticate("") is None
    devices.revoke("cam-1", now=7.0)
    devices.revoke("cam-1", now=9.0)
    assert devices.authenticate(token) == Device("cam-1", "device", "north", 5.0, 7.0)


def test_all_are_listed_by_name(devices: Devices) -> None:
    devices.add("b", cohort="north")
    devices.add("a", cohort=None, role="operator")
    assert [(d.name, d.role, d.cohort) for d in devices.list()] == [
        ("a", "operator", None),
        ("b", "device", "north"),
    ]


def test_wrong_arguments_are_refused_with_a_reason(devices: Devices) -> None:
    devices.add("a", cohort="north")
    with pytest.raises(StoreError, match="already"):
        devices.add("a", cohort="north")
    with pytest.raises(StoreError, match="letters"):
        devices.add("a b", cohort="north")
    with pytest.raises(StoreError, match="no cohort 'south'"):
        devices.add("c", cohort="south")
    with pytest.raises(StoreError, match="one cohort"):
        devices.add("c", cohort=None)
    with pytest.raises(StoreError, match="role"):
        devices.add("c", cohort="north", role="root")  # type: ignore[arg-type]
    with pytest.raises(StoreError, match="no device 'z'"):
        devices.revoke("z")


def test_the_register_opens_from_the_configuration_alone(tmp_path: Path) -> None:
    config = CloudConfig.load(write_config(tmp_path))
    with Devices.open(config) as devices:
        token = devices.add("cam", cohort="north")
    with Devices.open(config) as devices:
        found = devices.authenticate(token)
    assert found is not None
    assert found.name == "cam"
