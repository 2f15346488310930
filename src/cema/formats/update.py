r"""One version of a model's norm state on its way to the devices: payload, manifest, signature.

*Payload*: safetensors with the metadata ``{"format": "cema.payload/1"}``; one tensor per norm parameter
(``{layer}.scale``, ``{layer}.shift``) and ``golden.logits``, each float16 or float32; optionally the domain
it was made for. Every update is complete.

*Manifest*: JSON that names the payload by its digest and says for whom it is meant and until when.

*Envelope*: ``{"manifest": base64, "signatures": [{"key": id, "signature": base64}]}``. A signature is Ed25519
over ``b"cema.update/1\0"`` followed by the manifest's bytes. A verifier MUST refuse an envelope that is not,
byte for byte, what encoding its content again gives, so that no two envelopes say the same; and a manifest
likewise.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

import msgspec

from cema._util.checks import is_sha256
from cema.errors import FormatError, UpdateRejected
from cema.formats.envelope import content_of, open_envelope, seal
from cema.formats.keys import Signer
from cema.formats.payload import (
    Payload,
    decode_payload,
)

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

__all__ = [
    "UPDATE_FORMAT",
    "UpdateManifest",
    "base_of",
    "sign_update",
    "verify_payload",
    "verify_update",
    "version_of",
]

UPDATE_FORMAT = "cema.update/1"
"""What a manifest says that it is."""

_CONTEXT = UPDATE_FORMAT.encode() + b"\0"


class UpdateManifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an update is, for whom, and until when; this is what gets signed.

    Attributes
    ----------
    cohort : str
        The cohort it is made for.
    version : int
        Its number in the cohort's line of versions, at least 1.
    base : str
        The ``base`` of the bundle it is made for (`cema.formats.bundle_manifest.base_digest`).
    created, expires : int
        Unix times in seconds; a device refuses it from `expires` on.
    payload : str
        SHA-256 of the payload.
    payload_bytes : int
        The payload's size.
    format : str
        `UPDATE_FORMAT`; there is no default, so that a manifest without it is refused.

    Raises
    ------
    ValueError
        If a field is out of its range.
    """

    cohort: str
    version: int
    base: str
    created: int
    expires: int
    payload: str
    payload_bytes: int
    format: str

    def __post_init__(self) -> None:
        if self.format != UPDATE_FORMAT:
            raise ValueError(f"expected the format {UPDATE_FORMAT!r}, got {self.format!r}")
        if not 1 <= self.version < 2**63:
            raise ValueError(f"expected a version of at least 1, got {self.version}")
        for name, digest in (("base", self.base), ("payload", self.payload)):
            if not is_sha256(digest):
                raise ValueError(f"expected {name} to be a SHA-256 in lowercase hex, got {digest[:80]!r}")
        if self.payload_bytes < 1:
            raise ValueError(f"expected a payload of at least 1 byte, got {self.payload_bytes}")


def sign_update(manifest: UpdateManifest, *signers: Signer) -> bytes:
    """Sign a manifest.

    Parameters
    ----------
    manifest : UpdateManifest
        What to sign.
    *signers : Signer
        Of keys of which every device holds a public half: one, or, while keys are exchanged, several. Their signatures
        are in this order.

    Returns
    -------
    bytes
        The envelope.

    Raises
    ------
    ValueError
        If there is no signer.
    SigningError
        If one of them cannot sign now.
    """
    return seal(_canonical(manifest), signers, context=_CONTEXT)


def verify_update(
    envelope: bytes,
    *,
    public_keys: Mapping[str, Ed25519PublicKey],
    cohort: str,
    base: str,
    running_version: int,
    now: float,
    revoked: Collection[str] = (),
) -> UpdateManifest:
    """Verify an envelope and everything its manifest says.

    Parameters
    ----------
    envelope : bytes
        What `sign_update` returned.
    public_keys : mapping of str to Ed25519PublicKey
        The keys this device trusts, by `cema.formats.keys.key_id`. One of them must have signed; every signature by
        one of them must be right.
    cohort : str
        This device's cohort.
    base : str
        That of this device's bundle.
    running_version : int
        The version this device runs; 0 is the one it was provisioned with.
    now : float
        Unix time in seconds.
    revoked : collection of str
        Ids of keys that this device once trusted and that are revoked: signatures by one of these alone are refused as
        ``revoked_key``.

    Returns
    -------
    UpdateManifest
        The manifest, which can be trusted.

    Raises
    ------
    UpdateRejected
        For anything that is not right; nothing of the manifest is looked at before a signature is verified.
    """
    content = open_envelope(envelope, public_keys, context=_CONTEXT, revoked=revoked).content
    try:
        manifest = msgspec.json.decode(content, type=UpdateManifest)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise UpdateRejected("malformed", f"the manifest does not follow {UPDATE_FORMAT}: {error}") from error
    if _canonical(manifest) != content:
        # Signed or not: of two members of one name every reader would take the one it likes.
        raise UpdateRejected(
            "malformed", "the manifest is not in its canonical encoding, or has a member twice"
        )
    if manifest.cohort != cohort:
        raise UpdateRejected(
            "wrong_cohort", f"it is made for {manifest.cohort!r}, this device is in {cohort!r}"
        )
    if manifest.base != base:
        raise UpdateRejected(
            "wrong_base", f"it is made for the model {manifest.base}, this device has {base}"
        )
    if now >= manifest.expires:
        raise UpdateRejected(
            "expired", f"it expired at {manifest.expires}, now is {now:.0f}: check the device's clock"
        )
    if manifest.version <= running_version:
        raise UpdateRejected(
            "old", f"version {manifest.version} is not newer than the running {running_version}"
        )
    return manifest


def verify_payload(manifest: UpdateManifest, payload: bytes) -> Payload:
    """Verify that a payload is the one that a verified manifest names, and decode it.

    Parameters
    ----------
    manifest : UpdateManifest
        What `verify_update` returned.
    payload : bytes
        What came from the network or the disk.

    Returns
    -------
    Payload
        The decoded payload.

    Raises
    ------
    UpdateRejected
        With the reason ``payload_mismatch`` if size or digest differ, ``malformed`` if they agree and it
        still cannot be decoded.
    """
    if len(payload) != manifest.payload_bytes:
        raise UpdateRejected(
            "payload_mismatch", f"the manifest promises {manifest.payload_bytes} bytes, {len(payload)} came"
        )
    digest = hashlib.sha256(payload).hexdigest()
    if digest != manifest.payload:
        raise UpdateRejected("payload_mismatch", f"the manifest names {manifest.payload}, {digest} came")
    try:
        return decode_payload(payload)
    except FormatError as error:
        raise UpdateRejected("malformed", str(error)) from error


def version_of(envelope: bytes) -> int:
    """Return the version that an envelope says it is, unverified: for messages alone; 0 if it cannot be read."""
    try:
        version = msgspec.json.decode(content_of(envelope), type=UpdateManifest).version
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return 0
    return version if 0 <= version < 2**53 else 0


def base_of(envelope: bytes) -> str | None:
    """Return the base model that an envelope says it is for, unverified: for who made it; None if it cannot be read."""
    try:
        return msgspec.json.decode(content_of(envelope), type=UpdateManifest).base
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None


def _canonical(manifest: UpdateManifest) -> bytes:
    return msgspec.json.encode(manifest, order="sorted")
