from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from signing_command import command

from cema.cloud.signing.config import SigningKeyConfig
from cema.cloud.signing.passphrase import pass_on
from cema.cloud.signing.signers import descriptors, open_signers, signing_public_keys
from cema.errors import ConfigError
from cema.formats.keys import generate_key, key_id


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    generate_key(tmp_path / "plain.key")
    generate_key(tmp_path / "secret.key", passphrase=b"one")
    generate_key(tmp_path / "other.key", passphrase=b"two")
    generate_key(tmp_path / "kms.key")
    (tmp_path / "one").write_text("one\n")
    return tmp_path


def settings(folder: Path) -> tuple[SigningKeyConfig, ...]:
    return (
        SigningKeyConfig(key=str(folder / "plain.key")),
        SigningKeyConfig(key=str(folder / "secret.key"), passphrase=f"file:{folder / 'one'}"),
        SigningKeyConfig(command=command(folder / "kms.key"), public_key=str(folder / "kms.pub")),
    )


def test_every_kind_of_key_signs_and_is_known_without_its_secret(folder: Path) -> None:
    keys = settings(folder)
    public = signing_public_keys(keys)
    for signer, half in zip(open_signers(keys), public, strict=True):
        assert signer.public_key() == half
        half.verify(signer.sign(b"x"), b"x")
    (folder / "one").unlink()
    assert signing_public_keys(keys) == public  # the server needs no passphrase
    with pytest.raises(ConfigError, match="the passphrase cannot be read"):
        open_signers(keys)


def test_a_descriptor_is_read_once_for_all_keys_and_may_have_moved(folder: Path) -> None:
    generate_key(folder / "second.key", passphrase=b"one")
    names = ("secret.key", "second.key")
    keys = [SigningKeyConfig(key=str(folder / name), passphrase="fd:77") for name in names]
    assert descriptors([*keys, *settings(folder)]) == ["fd:77"]
    signers = open_signers(keys, moved={"fd:77": f"fd:{pass_on(b'one')}"})
    assert len({key_id(signer.public_key()) for signer in signers}) == 2


def test_a_wrong_passphrase_is_told_and_never_shown(folder: Path) -> None:
    (folder / "one").write_text("a wrong one")
    with pytest.raises(ConfigError, match="check the passphrase") as refused:
        open_signers(settings(folder))
    assert "a wrong one" not in str(refused.value)
    with pytest.raises(ConfigError, match="say where its passphrase is with signing_passphrase"):
        open_signers([SigningKeyConfig(key=str(folder / "secret.key"))])
    with pytest.raises(ConfigError, match="the key is not encrypted"):
        open_signers([SigningKeyConfig(key=str(folder / "plain.key"), passphrase=f"file:{folder / 'one'}")])


def test_a_public_key_that_belongs_to_another_is_refused(folder: Path) -> None:
    plain, secret, _ = settings(folder)
    (folder / "secret.pub").write_bytes((folder / "other.pub").read_bytes())
    for key in (secret, msgspec.structs.replace(plain, public_key=str(folder / "other.pub"))):
        if key.passphrase is not None:
            with pytest.raises(ConfigError, match=r"other|secret.pub: this is not the public half"):
                open_signers([key])
    (folder / "secret.pub").unlink()
    with pytest.raises(ConfigError, match=r"secret\.pub.*cannot be read"):
        signing_public_keys([secret])


def test_one_key_twice_is_refused(folder: Path) -> None:
    plain = settings(folder)[0]
    for look in (open_signers, signing_public_keys):
        with pytest.raises(ConfigError, match="must differ"):
            look([plain, plain])


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({}, "got neither"),
        ({"key": "k", "command": ("c",), "public_key": "p"}, "got both"),
        ({"command": ("c",)}, "public_key"),
        ({"command": ("",), "public_key": "p"}, "name of a program"),
        ({"command": ("c",), "public_key": "p", "passphrase": "env:X"}, "not to a command"),
        ({"key": "k", "passphrase": "hunter2"}, "expected file:PATH"),
        ({"key": "k", "timeout_seconds": 0}, "timeout_seconds"),
        ({"key": "k", "timeout_seconds": float("inf")}, "timeout_seconds"),
    ],
)
def test_settings_that_name_no_key_are_refused(fields: dict[str, object], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        SigningKeyConfig(**fields)  # type: ignore[arg-type]
    with pytest.raises(msgspec.ValidationError, match=told):
        msgspec.convert(fields, SigningKeyConfig)
