"""From settings to what signs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from cema.cloud.signing.command import CommandSigner
from cema.cloud.signing.config import SigningKeyConfig
from cema.cloud.signing.passphrase import read_passphrase
from cema.errors import ConfigError
from cema.formats.keys import Signer, key_id, load_private_key, load_public_key

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

__all__ = ["descriptors", "open_signers", "signing_public_keys"]


def open_signers(
    keys: Sequence[SigningKeyConfig], *, moved: Mapping[str, str] | None = None
) -> tuple[Signer, ...]:
    """Make ready to sign.

    Parameters
    ----------
    keys : sequence of SigningKeyConfig
        In the order in which they sign.
    moved : mapping of str to str, optional
        For ``fd:NUMBER`` in the settings, the one under which this process has the descriptor.

    Returns
    -------
    tuple of Signer
        One for each key. A command is not run yet.

    Raises
    ------
    ConfigError
        If a file or passphrase is missing or wrong, or two of the keys are the same.
    """
    found = moved or {}

    @cache  # a descriptor can be read once
    def passphrase(source: str) -> bytes:
        return read_passphrase(found.get(source, source))

    signers = tuple(_open(key, passphrase) for key in keys)
    _check_different([signer.public_key() for signer in signers])
    return signers


def signing_public_keys(keys: Sequence[SigningKeyConfig]) -> tuple[Ed25519PublicKey, ...]:
    """Return the public halves of the keys that sign; no passphrase is read.

    Raises
    ------
    ConfigError
        If a file is missing or wrong, or two of the keys are the same.
    """
    public = tuple(_public_key(key) for key in keys)
    _check_different(public)
    return public


def descriptors(keys: Sequence[SigningKeyConfig]) -> list[str]:
    """Return the passphrase sources of the keys that are file descriptors, each once."""
    sources = [key.passphrase for key in keys if key.passphrase is not None]
    return list(dict.fromkeys(source for source in sources if source.startswith("fd:")))


def _open(key: SigningKeyConfig, passphrase: Callable[[str], bytes]) -> Signer:
    if key.key is None:
        return CommandSigner(key.command, _public_key(key), timeout_seconds=key.timeout_seconds)
    secret = None if key.passphrase is None else passphrase(key.passphrase)
    signer = load_private_key(Path(key.key), passphrase=secret)
    if (secret is not None or key.public_key is not None) and _public_key(key) != signer.public_key():
        raise ConfigError(
            f"{_public_path(key)}: this is not the public half of {key.key}; name the one that belongs to it"
        )
    return signer


def _public_key(key: SigningKeyConfig) -> Ed25519PublicKey:
    if key.key is not None and key.passphrase is None:
        return load_private_key(Path(key.key)).public_key()
    return load_public_key(_public_path(key))


def _public_path(key: SigningKeyConfig) -> Path:
    if key.public_key is not None:
        return Path(key.public_key)
    assert key.key is not None  # noqa: S101 - a command has a public key, its settings see to that
    return Path(key.key).with_suffix(".pub")


def _check_different(keys: Sequence[Ed25519PublicKey]) -> None:
    names = [key_id(key) for key in keys]
    if len(set(names)) < len(names):
        raise ConfigError(f"the signing keys must differ, got {names}; name each of them once")
