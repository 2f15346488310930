from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cema.errors import ConfigError
from cema.formats.keys import (
    generate_key,
    key_id,
    load_private_key,
    load_public_key,
    load_public_keys,
    public_key_pem,
)


def test_a_key_pair_is_written_and_read(tmp_path: Path) -> None:
    key = generate_key(tmp_path / "signing.pem")
    private, public = load_private_key(tmp_path / "signing.pem"), load_public_key(tmp_path / "signing.pub")
    public.verify(private.sign(b"x"), b"x")
    assert private.private_bytes_raw() == key.private_bytes_raw()
    assert public == key.public_key()
    assert (tmp_path / "signing.pub").read_bytes() == public_key_pem(key.public_key())
    assert b"BEGIN PRIVATE KEY" in (tmp_path / "signing.pem").read_bytes()
    assert {entry.name for entry in tmp_path.iterdir()} == {"signing.pem", "signing.pub"}


def test_a_missing_folder_is_made_for_the_user_alone(tmp_path: Path) -> None:
    path = tmp_path / "new" / "keys" / "signing.key"
    key = generate_key(path)
    assert load_private_key(path).private_bytes_raw() == key.private_bytes_raw()
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize("umask", [0o000, 0o022])
def test_the_private_key_is_its_user_s_alone(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        generate_key(tmp_path / "signing.pem")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "signing.pem").stat().st_mode) == 0o600


def test_the_id_is_the_start_of_the_digest_of_the_raw_key(tmp_path: Path) -> None:
    public = generate_key(tmp_path / "k.pem").public_key()
    raw = public.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    assert len(raw) == 32
    assert key_id(public) == hashlib.sha256(raw).hexdigest()[:16]


@pytest.mark.parametrize("existing", ["k.pem", "k.pub"])
def test_nothing_is_overwritten(tmp_path: Path, existing: str) -> None:
    (tmp_path / existing).write_text("mine")
    with pytest.raises(ConfigError, match="never overwritten"):
        generate_key(tmp_path / "k.pem")
    assert [(entry.name, entry.read_text()) for entry in tmp_path.iterdir()] == [(existing, "mine")]


def test_a_dangling_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "k.pem").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="never overwritten"):
        generate_key(tmp_path / "k.pem")
    assert not (tmp_path / "elsewhere").exists()


def test_bad_paths_for_a_new_key(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="public key's suffix"):
        generate_key(tmp_path / "k.pub")
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(ConfigError, match="cannot be written"):
        generate_key(tmp_path / "file" / "k.pem")


def test_several_public_keys(tmp_path: Path) -> None:
    keys = [generate_key(tmp_path / f"{name}.pem").public_key() for name in "ab"]
    expected = {key_id(key): key for key in keys}
    assert load_public_keys(tmp_path) == expected
    assert load_public_keys([tmp_path / "a.pub", tmp_path / "b.pub"]) == expected
    assert load_public_keys(tmp_path / "a.pub") == {key_id(keys[0]): keys[0]}
    (tmp_path / "empty").mkdir()
    assert load_public_keys(tmp_path / "empty") == {}
    with pytest.raises(ConfigError, match="cannot be read"):
        load_public_keys(tmp_path / "absent")


def test_keys_of_another_kind_are_refused(tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    (tmp_path / "k.pem").write_bytes(private)
    (tmp_path / "k.pub").write_bytes(public)
    with pytest.raises(ConfigError, match="expected an Ed25519 private key, got"):
        load_private_key(tmp_path / "k.pem")
    with pytest.raises(ConfigError, match="expected an Ed25519 public key, got"):
        load_public_key(tmp_path / "k.pub")


def test_the_wrong_half_and_encrypted_keys_are_refused(tmp_path: Path) -> None:
    key = generate_key(tmp_path / "k.pem")
    with pytest.raises(ConfigError, match="unencrypted Ed25519 private key"):
        load_private_key(tmp_path / "k.pub")
    with pytest.raises(ConfigError, match=r"use the \.pub file"):
        load_public_key(tmp_path / "k.pem")
    secret = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"secret"),
    )
    (tmp_path / "secret.pem").write_bytes(secret)
    with pytest.raises(ConfigError, match="unencrypted"):
        load_private_key(tmp_path / "secret.pem")


@pytest.mark.parametrize("passphrase", [b"x", bytes(range(1, 256)), b"p" * 1023])
def test_an_encrypted_key_is_written_and_read(tmp_path: Path, passphrase: bytes) -> None:
    key = generate_key(tmp_path / "k.pem", passphrase=passphrase)
    assert b"BEGIN ENCRYPTED PRIVATE KEY" in (tmp_path / "k.pem").read_bytes()
    assert stat.S_IMODE((tmp_path / "k.pem").stat().st_mode) == 0o600
    assert load_private_key(tmp_path / "k.pem", passphrase=passphrase).private_bytes_raw() == (
        key.private_bytes_raw()
    )
    for wrong in (passphrase + b"?", b"?", b""):
        with pytest.raises(ConfigError, match="check the passphrase"):
            load_private_key(tmp_path / "k.pem", passphrase=wrong)


@pytest.mark.parametrize("passphrase", [b"", b"p" * 1024])
def test_a_passphrase_that_cannot_encrypt_is_refused(tmp_path: Path, passphrase: bytes) -> None:
    with pytest.raises(ConfigError, match="1 to 1023 bytes"):
        generate_key(tmp_path / "k.pem", passphrase=passphrase)
    assert list(tmp_path.iterdir()) == []


def test_a_passphrase_for_a_key_that_is_not_encrypted_is_refused(tmp_path: Path) -> None:
    generate_key(tmp_path / "k.pem")
    with pytest.raises(ConfigError, match="not encrypted; remove the setting"):
        load_private_key(tmp_path / "k.pem", passphrase=b"x")


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(garbage=st.binary(max_size=60), position=st.integers(0, 150), cut=st.booleans())
def test_damaged_key_files_are_config_errors(
    tmp_path: Path, garbage: bytes, position: int, cut: bool
) -> None:
    source = tmp_path / "source.pem"
    if not source.exists():
        generate_key(source)
    for path, load in ((source, load_private_key), (source.with_suffix(".pub"), load_public_key)):
        data = path.read_bytes()
        damaged = tmp_path / "damaged"
        damaged.write_bytes(data[:position] + garbage + (b"" if cut else data[position + len(garbage) :]))
        with contextlib.suppress(ConfigError):
            load(damaged)
