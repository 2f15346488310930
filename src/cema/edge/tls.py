"""Whose certificates a device takes for its cloud's."""

from __future__ import annotations

import ssl
from pathlib import Path

import httpx2

from cema._util.toml import shown
from cema.errors import ConfigError

__all__ = ["remedy_for", "verifying"]

_LARGEST = 4 << 20
_BEGIN = b"-----BEGIN CERTIFICATE-----"


def verifying(ca_file: str | None, *, needed: bool) -> ssl.SSLContext:
    """Return what verifies servers; reading the authorities takes long, and plain HTTP does without.

    Parameters
    ----------
    ca_file : str or None
        A PEM file with the certificates of the only authorities that are trusted; None: those of this machine.
    needed : bool
        Whether anything is encrypted; nobody is trusted otherwise.

    Raises
    ------
    ConfigError
        When there are no certificates in the file, or it cannot be read.
    """
    if not needed:
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if ca_file is None:
        return httpx2.create_ssl_context()  # with SSL_CERT_FILE, which `trust_env` would switch off too
    try:
        with open(ca_file, "rb") as file:
            data = file.read(_LARGEST)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"cloud.ca_file: {error}; put the certificate (PEM) of the authority there that signed the cloud's"
        ) from error
    try:
        if _BEGIN not in data:  # with nothing given, the library would trust whom this machine trusts
            raise ValueError(f"it begins with {data[:16]!r}" if data else "it is empty")
        # Certificates are ASCII; what stands beside them may be of any language.
        return ssl.create_default_context(cadata=data.decode("ascii", "ignore"))
    except (ssl.SSLError, ValueError) as error:
        raise ConfigError(
            f"cloud.ca_file: expected certificates in PEM ({_BEGIN.decode()}) in {shown(Path(ca_file))}: {error}; put "
            "the certificate of the authority there that signed the cloud's"
        ) from error


def remedy_for(error: BaseException, ca_file: str | None) -> str:
    """Return what to do about a request that failed without an answer."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, ssl.SSLCertVerificationError):
            if ca_file is None:
                return (
                    "no authority that this device trusts signed the cloud's certificate for this name; if it is your "
                    "own, name its certificate (PEM) in cloud.ca_file"
                )
            return f"the cloud's certificate for this name is not signed by an authority in cloud.ca_file {ca_file}"
        found = found.__cause__ or found.__context__
    return "is the cloud running and reachable?"
