"""The settings of one key that signs."""

from __future__ import annotations

import os
import re
from pathlib import Path

import msgspec

from cema._util.checks import require, require_at_least
from cema._util.toml import resolve_path

__all__ = ["SigningKeyConfig", "check_passphrase"]

# Descriptors 0 to 2 are everybody's.
_PASSPHRASE = re.compile(r"file:.+|env:.+|fd:([3-9]|[1-9][0-9]{1,6})", re.DOTALL)


class SigningKeyConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A key that signs updates: one in a file, or one that a command signs with.

    Attributes
    ----------
    key : str, optional
        Private key (ed25519, PEM), relative to the configuration file.
    passphrase : str, optional
        Where the passphrase of an encrypted `key` is: ``file:PATH``, ``env:NAME`` or ``fd:NUMBER``.
    command : tuple of str, default ()
        In place of `key`: a program and its arguments. It gets the bytes to sign on standard input, and writes the
        signature, 64 bytes, to standard output.
    public_key : str, optional
        Public key (ed25519, PEM): of `command`, and of an encrypted `key` if it is not beside it with the suffix
        ``.pub``.
    timeout_seconds : float, default 10
        What `command` may take.
    """

    key: str | None = None
    passphrase: str | None = None
    command: tuple[str, ...] = ()
    public_key: str | None = None
    timeout_seconds: float = 10.0

    def __post_init__(self) -> None:
        """Refuse settings that do not name one key."""
        if (self.key is None) == (not self.command):
            raise ValueError(
                "expected either key or command, got "
                f"{'neither' if self.key is None else 'both'}; name where the private key is, or what signs with it"
            )
        if self.command and self.public_key is None:
            raise ValueError("public_key: a command needs one, got none; name its public key's file")
        if self.command and self.passphrase is not None:
            raise ValueError("passphrase: it belongs to a key in a file, not to a command; remove it")
        if self.command:
            require(bool(self.command[0]), "command", "the name of a program first", self.command)
        if self.passphrase is not None:
            check_passphrase(self.passphrase)
        require_at_least(self, 0.1, "timeout_seconds", finite=True)

    def absolute(self, base: Path) -> SigningKeyConfig:
        """Return the same with paths that no longer depend on the configuration file's folder."""

        def path(value: str) -> str:
            return str(resolve_path(base, value))

        passphrase = self.passphrase
        if passphrase is not None and passphrase.startswith("file:"):
            passphrase = f"file:{path(passphrase.removeprefix('file:'))}"
        command = self.command
        if command and os.sep in command[0]:  # any other name is looked for in PATH
            command = (path(command[0]), *command[1:])
        return msgspec.structs.replace(
            self,
            key=self.key and path(self.key),
            passphrase=passphrase,
            command=command,
            public_key=self.public_key and path(self.public_key),
        )


def check_passphrase(source: str) -> None:
    """Check the form of a passphrase's source.

    Raises
    ------
    ValueError
        It names no file, environment variable or file descriptor. What came is not told: it may be the passphrase.
    """
    if _PASSPHRASE.fullmatch(source) is None:
        raise ValueError(
            "passphrase: expected file:PATH, env:NAME or fd:NUMBER (3 or more), got something else; never write the "
            "passphrase itself into the configuration"
        )
