"""Ed25519 keys on disk: the cloud signs updates with a private key, devices verify with the public one."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from cema._util.files import write_new
from cema.errors import ConfigError

__all__ = [
    "Signer",
    "generate_key",
    "key_id",
    "load_private_key",
    "load_public_key",
    "load_public_keys",
    "public_key_pem",
]

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

K = TypeVar("K")

# What OpenSSL takes.
_LONGEST_PASSPHRASE = 1023


class Signer(Protocol):
    """What makes signatures of one key: an `Ed25519PrivateKey` in memory, or whatever reaches a key elsewhere."""

    def public_key(self) -> Ed25519PublicKey:
        """Return the public half of the key."""
        ...

    def sign(self, data: bytes, /) -> bytes:
        """Return the Ed25519 signature (RFC 8032, no prehash) of some bytes: 64 bytes.

        Raises
        ------
        SigningError
            There is no signature now; a later call may succeed.
        """
        ...


def generate_key(path: Path, *, passphrase: bytes | None = None) -> Ed25519PrivateKey:
    """Make a new key pair and write it to disk.

    Parameters
    ----------
    path : Path
        Where the private key goes (PEM, PKCS #8, readable by its user alone); the public key is written beside it,
        with the suffix ``.pub``. A folder that does not exist is made, for its user alone.
    passphrase : bytes, optional
        Encrypts the private key: 1 to 1023 bytes. Without it the file holds the key as it is.

    Returns
    -------
    Ed25519PrivateKey
        The new key.

    Raises
    ------
    ConfigError
        If either file exists already or cannot be written, or the passphrase is empty or too long. An existing file
        is never touched: devices that trust a lost key can never be updated again.
    """
    path = Path(path)
    if passphrase is not None and not 1 <= len(passphrase) <= _LONGEST_PASSPHRASE:
        raise ConfigError(
            f"{path}: expected a passphrase of 1 to {_LONGEST_PASSPHRASE} bytes, got {len(passphrase)}; choose another"
        )
    public_path = path.with_suffix(".pub")
    if public_path == path:
        raise ConfigError(
            f"{path}: .pub is the public key's suffix; name the private key otherwise, for example .pem"
        )
    for existing in (path, public_path):
        if existing.exists() or existing.is_symlink():
            raise ConfigError(
                f"{existing}: exists already and is never overwritten; choose another path, or move it away"
            )
    # Here and below: loaded where there is a key to make or read, for it takes as long as half of the edge.
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey  # noqa: PLC0415

    key = Ed25519PrivateKey.generate()
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if passphrase is not None:
        encryption = serialization.BestAvailableEncryption(passphrase)
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_new(path, pem, mode=0o600)
        write_new(public_path, public_key_pem(key.public_key()))
    except OSError as error:
        raise ConfigError(f"{path}: the key pair cannot be written: {error}") from error
    return key


def load_private_key(path: Path, *, passphrase: bytes | None = None) -> Ed25519PrivateKey:
    """Read a private key.

    Parameters
    ----------
    path : Path
        A PEM file as `generate_key` writes it.
    passphrase : bytes, optional
        What the file is encrypted with; None for one that is not.

    Returns
    -------
    Ed25519PrivateKey
        The key.

    Raises
    ------
    ConfigError
        If the file is missing, is not an Ed25519 private key in PEM, or is encrypted with another passphrase; also if
        it is encrypted and there is no passphrase, or the other way round.
    """
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey  # noqa: PLC0415

    data = _read(path)
    encrypted = b"ENCRYPTED" in data
    if encrypted and passphrase is None:
        raise ConfigError(
            f"{path}: expected an unencrypted Ed25519 private key in PEM, got an encrypted one; say where its "
            "passphrase is with signing_passphrase"
        )
    if not encrypted and passphrase is not None and b"PRIVATE KEY" in data:
        raise ConfigError(f"{path}: a passphrase is given, but the key is not encrypted; remove the setting")
    expected = "an unencrypted Ed25519 private key in PEM; make one with `cema keys new`"
    if passphrase is not None:
        expected = "an Ed25519 private key in PEM that this passphrase opens; check the passphrase"
    key = _parsed(
        lambda: serialization.load_pem_private_key(data, password=passphrase), f"{path}: expected {expected}"
    )
    return _checked(path, key, Ed25519PrivateKey, "private")  # type: ignore[type-abstract]


def load_public_key(path: Path) -> Ed25519PublicKey:
    """Read a public key.

    Parameters
    ----------
    path : Path
        A PEM file as `generate_key` writes it.

    Returns
    -------
    Ed25519PublicKey
        The key.

    Raises
    ------
    ConfigError
        If the file is missing, or is not an Ed25519 public key in PEM.
    """
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey  # noqa: PLC0415

    data = _read(path)
    hint = "; this is a private key, use the .pub file beside it" if b"PRIVATE KEY" in data else ""
    key = _parsed(
        lambda: serialization.load_pem_public_key(data),
        f"{path}: expected an Ed25519 public key in PEM{hint}",
    )
    return _checked(path, key, Ed25519PublicKey, "public")  # type: ignore[type-abstract]


def load_public_keys(paths: Path | Iterable[Path]) -> dict[str, Ed25519PublicKey]:
    """Read several public keys.

    Parameters
    ----------
    paths : Path or iterable of Path
        A folder, of which every ``*.pub`` is read; a file; or several files.

    Returns
    -------
    dict of str to Ed25519PublicKey
        The keys under their `key_id`.

    Raises
    ------
    ConfigError
        If a file or the folder is missing, or a file is not an Ed25519 public key in PEM.
    """
    files = (
        (sorted(paths.glob("*.pub")) if paths.is_dir() else [paths])
        if isinstance(paths, Path)
        else list(paths)
    )
    keys = [load_public_key(file) for file in files]
    return {key_id(key): key for key in keys}


def key_id(public_key: Ed25519PublicKey) -> str:
    """Return a key's short name: the first 16 hexadecimal digits of the SHA-256 of its 32 raw bytes.

    It only says which key to try; trust comes from the signature.

    Parameters
    ----------
    public_key : Ed25519PublicKey
        The key.

    Returns
    -------
    str
        16 lowercase hexadecimal digits.
    """
    return hashlib.sha256(public_key.public_bytes_raw()).hexdigest()[:16]


def public_key_pem(public_key: Ed25519PublicKey) -> bytes:
    """Return a public key as PEM.

    Parameters
    ----------
    public_key : Ed25519PublicKey
        The key.

    Returns
    -------
    bytes
        PEM (SubjectPublicKeyInfo).
    """
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415

    return public_key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def _read(path: Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{path}: the key file cannot be read: {error.strerror or error}; check the path"
        ) from error


def _parsed(parse: Callable[[], object], otherwise: str) -> object:
    """Return what is in a PEM file; a file that holds no key is an error with this message."""
    from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415

    try:
        return parse()
    except (
        ValueError,
        TypeError,
        UnsupportedAlgorithm,
    ) as error:  # TypeError where a password would be needed
        raise ConfigError(otherwise) from error


def _checked(path: Path, key: object, kind: type[K], name: str) -> K:
    """Return a key that was read, if it is one for Ed25519."""
    if not isinstance(key, kind):
        raise ConfigError(f"{path}: expected an Ed25519 {name} key, got {type(key).__name__}")
    return key
