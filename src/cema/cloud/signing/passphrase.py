"""Where passphrases come from: a file, an environment variable, a file descriptor; never the command line."""

from __future__ import annotations

import os
from pathlib import Path

from cema.cloud.signing.config import check_passphrase
from cema.errors import ConfigError

__all__ = ["pass_on", "read_passphrase"]

# Longer than any that a key can have, and shorter than what a pipe holds.
_MOST_BYTES = 2048


def read_passphrase(source: str) -> bytes:
    """Read a passphrase.

    Parameters
    ----------
    source : str
        ``file:PATH``, ``env:NAME`` or ``fd:NUMBER``. A file descriptor is read to its end and closed: a second call
        finds nothing.

    Returns
    -------
    bytes
        The passphrase, less one end of line.

    Raises
    ------
    ConfigError
        If there is none, or more than 2048 bytes. No message has any part of it.
    """
    try:
        check_passphrase(source)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    kind, _, where = source.partition(":")
    read = {"file": _from_file, "env": _from_environment, "fd": _from_descriptor}[kind]
    passphrase = read(where)
    if len(passphrase) > _MOST_BYTES:
        raise ConfigError(
            f"{source}: expected a passphrase, got more than {_MOST_BYTES} bytes; check the source"
        )
    passphrase = passphrase.removesuffix(b"\n").removesuffix(b"\r")
    if not passphrase:
        raise ConfigError(f"{source}: expected a passphrase, got nothing; check what writes it")
    return passphrase


def pass_on(passphrase: bytes) -> int:
    """Return a file descriptor from which a child process can read a passphrase once; the caller closes it.

    It is a pipe, so the passphrase is in no file, no environment and no command line.
    """
    readable, writable = os.pipe()
    try:
        os.write(writable, passphrase)  # less than a pipe holds, so this never waits
    finally:
        os.close(writable)
    return readable


def _from_file(path: str) -> bytes:
    try:
        with Path(path).open("rb") as file:
            return file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise ConfigError(
            f"file:{path}: the passphrase cannot be read: {error.strerror or error}; check the path"
        ) from error


def _from_environment(name: str) -> bytes:
    value = os.environb.get(os.fsencode(name))
    if value is None:
        raise ConfigError(f"env:{name}: there is no such environment variable; set it to the passphrase")
    return value


def _from_descriptor(number: str) -> bytes:
    try:
        with os.fdopen(int(number), "rb") as file:
            return file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise ConfigError(
            f"fd:{number}: no passphrase can be read from this file descriptor: {error}; open it for the process, as "
            f"the shell does with {number}<FILE; it can be read once only"
        ) from error
