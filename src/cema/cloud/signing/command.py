"""A signer that runs a command for every signature: the key itself may be in another process, a card or a service."""

from __future__ import annotations

import logging
import os
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from cema.errors import SigningError
from cema.formats.keys import key_id

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

__all__ = ["CommandSigner"]

log = logging.getLogger(__name__)

_SIGNATURE_BYTES = 64


class CommandSigner:
    """Sign with a command; a `cema.formats.keys.Signer`.

    The bytes to sign are the command's standard input, the raw signature must be its standard output. Its standard
    error goes where this process's goes. Nothing is taken over that does not verify with the public key.

    Parameters
    ----------
    command : sequence of str
        The program, found in PATH unless it is a path, and its arguments. No shell is involved.
    public_key : Ed25519PublicKey
        The public half of the key that it signs with.
    timeout_seconds : float
        What it may take; then it and the processes that it has started are killed.
    """

    def __init__(
        self, command: Sequence[str], public_key: Ed25519PublicKey, *, timeout_seconds: float
    ) -> None:
        self._command = list(command)
        self._public_key = public_key
        self._timeout = timeout_seconds

    def public_key(self) -> Ed25519PublicKey:
        """Return the public half of the key."""
        return self._public_key

    def sign(self, data: bytes, /) -> bytes:
        """Return the signature of some bytes.

        Raises
        ------
        SigningError
            The command cannot be started, fails, takes too long, or does not give a signature by this key.
        """
        from cryptography.exceptions import InvalidSignature  # noqa: PLC0415 - loaded by whoever read the public key

        signature = self._run(data)
        if len(signature) != _SIGNATURE_BYTES:
            got = "more" if len(signature) > _SIGNATURE_BYTES else str(len(signature))
            raise self._error(f"expected a raw signature of {_SIGNATURE_BYTES} bytes, got {got}")
        try:
            self._public_key.verify(signature, data)
        except InvalidSignature:
            raise self._error(f"its signature is not one by the key {key_id(self._public_key)}") from None
        return signature

    def _run(self, data: bytes) -> bytes:
        deadline = time.monotonic() + self._timeout
        # A file, not a pipe: a command that does not read its input blocks nobody.
        with tempfile.TemporaryFile() as file:
            file.write(data)
            file.seek(0)
            try:
                process = subprocess.Popen(  # noqa: S603 - the operator's own command, without a shell
                    self._command, stdin=file, stdout=subprocess.PIPE, start_new_session=True
                )
            except OSError as error:
                raise self._error(f"it cannot be started: {error.strerror or error}") from error
        try:
            return self._read(process, deadline)
        finally:
            _end(process)

    def _read(self, process: subprocess.Popen[bytes], deadline: float) -> bytes:
        """Return what the command writes, at most one byte more than a signature has."""
        assert process.stdout is not None  # noqa: S101 - it was asked for above
        output = b""
        while len(output) <= _SIGNATURE_BYTES:
            ready, _, _ = select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise self._error(f"no whole signature came within {self._timeout:g} s")
            part = os.read(process.stdout.fileno(), _SIGNATURE_BYTES + 1 - len(output))
            if not part:
                break
            output += part
        if len(output) > _SIGNATURE_BYTES:
            return output
        try:
            status = process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise self._error(f"it did not end within {self._timeout:g} s") from None
        if status != 0:
            raise self._error(f"it ended with status {status}")
        return output

    def _error(self, problem: str) -> SigningError:
        return SigningError(
            f"the signing command {self._command[0]!r}: {problem}; run it by hand, with bytes on its standard input"
        )


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the command and what it has started, if they have not ended."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    if process.stdout is not None:
        process.stdout.close()
    process.wait()
