from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from cloud_support import opaque_bundle
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cema.cloud.signing.trust import change_keys, check_signers, cohort_keyring
from cema.cloud.store.sqlite import SqliteStore
from cema.errors import ConfigError, KeysRejected
from cema.formats.bundle import Bundle
from cema.formats.keyring import Keyring
from cema.formats.keys import key_id

A, B, C = (Ed25519PrivateKey.from_private_bytes(bytes([n]) * 32) for n in (1, 2, 3))


def name(key: Ed25519PrivateKey) -> str:
    return key_id(key.public_key())


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    with closing(SqliteStore(tmp_path / "cema.db", max_bytes=2**22)) as store:
        yield store


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return opaque_bundle(tmp_path / "bundle", A.public_key())


def change(store: SqliteStore, bundle: Bundle, *signers: Ed25519PrivateKey, **changes: Any) -> Keyring:
    return change_keys(store, "north", bundle, signers, **({"now": 1000.0, "days": 30.0} | changes))


def test_a_rotation_and_a_revocation(store: SqliteStore, bundle: Bundle) -> None:
    both = change(store, bundle, A, B, trust=[B.public_key()])
    assert both.trusted.keys() == {name(A), name(B)}
    retired = change(store, bundle, A, B, retire=[name(A)])
    assert (retired.trusted.keys(), retired.known.keys()) == ({name(B)}, {name(A), name(B)})
    revoked = change(store, bundle, B, revoke=[name(A)])
    assert (revoked.serial, revoked.known.keys()) == (3, {name(B)})
    # Renewed: the same keys, a new life.
    assert change(store, bundle, B, now=9000.0).trusted == revoked.trusted
    # Exactly what a device makes of the documents.
    device = Keyring.of("north", bundle.public_keys)
    assert device.accept_all(store.keys_documents("north"), now=9001.0)[0] == cohort_keyring(
        store, "north", bundle
    )
    # A device that came with the new key alone understands those that it has signed.
    newer = Keyring.of("north", {name(B): B.public_key()})
    assert newer.accept_all(store.keys_documents("north"), now=9001.0)[0].serial == 4


def test_what_devices_would_refuse_is_neither_signed_nor_kept(store: SqliteStore, bundle: Bundle) -> None:
    with pytest.raises(ConfigError, match="has to be signed by one of the keys"):
        change(store, bundle, B, trust=[B.public_key()])
    with pytest.raises(ConfigError, match="no key would be left"):
        change(store, bundle, A, retire=[name(A)])
    with pytest.raises(ConfigError, match="no key would be left"):
        change(store, bundle, A, revoke=[name(A)])
    with pytest.raises(ConfigError, match="expected the id of one of the keys"):
        change(store, bundle, A, retire=["0" * 16])
    with pytest.raises(ConfigError, match="has to be signed"):  # by another key than the one that it revokes
        change(store, bundle, A, B, trust=[B.public_key()], revoke=[name(A)])
    with pytest.raises(KeysRejected, match="expired"):
        change(store, bundle, A, days=0.0)
    assert store.keys_documents("north") == []
    change(store, bundle, A, trust=[B.public_key()])
    change(store, bundle, B, revoke=[name(A)])
    with pytest.raises(ConfigError, match="trusted and revoked"):
        change(store, bundle, B, trust=[A.public_key()])
    assert len(store.keys_documents("north")) == 2


def test_signers_are_checked_against_the_bundle_and_the_documents(
    store: SqliteStore, bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    a, b, c = (key.public_key() for key in (A, B, C))
    check_signers(store, "north", bundle, [a])
    with pytest.raises(ConfigError, match="would refuse every update"):
        check_signers(store, "north", bundle, [b, c])
    change(store, bundle, A, trust=[b])
    check_signers(store, "north", bundle, [b])
    with pytest.raises(ConfigError, match="would refuse every update"):
        check_signers(store, "south", bundle, [b])
    change(store, bundle, B, revoke=[name(A)])
    with pytest.raises(ConfigError, match="would refuse every update"):
        check_signers(store, "north", bundle, [a])
    caplog.set_level(logging.WARNING)
    check_signers(store, "north", bundle, [a, b])
    assert f"the signing keys {name(A)} are revoked" in caplog.text
