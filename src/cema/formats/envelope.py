"""The envelope in which signed content travels: the content, and signatures of one or more keys over it."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from cema.errors import UpdateRejected
from cema.formats.keys import Signer, key_id

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

__all__ = ["Opened", "content_of", "open_envelope", "seal", "signed_by"]

_MAX_ENVELOPE_BYTES = 64 * 1024


class _Signature(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    key: str
    signature: str


class _Envelope(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    manifest: str
    signatures: tuple[_Signature, ...] = ()


class Opened(NamedTuple):
    """The content of an envelope, and the trusted keys that have signed it, by `key_id`."""

    content: bytes
    signers: frozenset[str]


def seal(content: bytes, signers: Sequence[Signer], *, context: bytes) -> bytes:
    """Sign content and put it into an envelope.

    Parameters
    ----------
    content : bytes
        What is signed.
    signers : sequence of Signer
        At least one.
    context : bytes
        What the signature covers before the content: it differs from format to format.

    Raises
    ------
    ValueError
        If there is no signer.
    SigningError
        If one of them cannot sign now.
    """
    if not signers:
        raise ValueError("expected at least one signer, got none; nobody would accept what is not signed")
    signatures = tuple(
        _Signature(
            key=key_id(signer.public_key()),
            signature=base64.b64encode(signer.sign(context + content)).decode(),
        )
        for signer in signers
    )
    envelope = _Envelope(manifest=base64.b64encode(content).decode(), signatures=signatures)
    return msgspec.json.encode(envelope)


def open_envelope(
    data: bytes,
    public_keys: Mapping[str, Ed25519PublicKey],
    *,
    context: bytes,
    revoked: Collection[str] = (),
) -> Opened:
    """Return what is in an envelope, once a trusted key has signed it.

    Parameters
    ----------
    data : bytes
        What `seal` returned.
    public_keys : mapping of str to Ed25519PublicKey
        The trusted keys, by `cema.formats.keys.key_id`. One must have signed; every signature by one must be right.
    context : bytes
        As given to `seal`.
    revoked : collection of str
        Ids of keys that were trusted once: a signature by one of these alone is refused under a reason of its own.

    Raises
    ------
    UpdateRejected
        With the reason ``malformed``, ``unsigned``, ``unknown_key``, ``revoked_key`` or ``bad_signature``.
    """
    if len(data) > _MAX_ENVELOPE_BYTES:
        raise UpdateRejected(
            "malformed", f"an envelope has at most {_MAX_ENVELOPE_BYTES} bytes, {len(data)} came"
        )
    try:
        envelope = msgspec.json.decode(data, type=_Envelope)
        content = _decode_base64(envelope.manifest)
        signatures = [(item.key, _decode_base64(item.signature)) for item in envelope.signatures]
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise UpdateRejected("malformed", f"the envelope cannot be read: {error}") from error
    if not signatures:
        raise UpdateRejected("unsigned", "the envelope carries no signature")
    if msgspec.json.encode(envelope) != data:
        raise UpdateRejected("malformed", "the envelope is not in its canonical encoding")
    trusted = [(public_keys[key], signature) for key, signature in signatures if key in public_keys]
    if not trusted:
        names = ", ".join(key[:32] for key, _ in signatures[:4])
        reason = "revoked_key" if any(key in revoked for key, _ in signatures) else "unknown_key"
        remedy = (
            "have the cloud's operator name the key to devices (cema keys rotate), or give it a new bundle"
        )
        raise UpdateRejected(reason, f"signed by {names}; this device trusts {sorted(public_keys)}: {remedy}")
    from cryptography.exceptions import InvalidSignature  # noqa: PLC0415 - loaded by whoever made the keys

    try:
        for key, signature in trusted:
            key.verify(signature, context + content)
    except InvalidSignature:
        raise UpdateRejected("bad_signature", "the signature does not fit the manifest") from None
    return Opened(content, frozenset(key for key, _ in signatures if key in public_keys))


def content_of(data: bytes) -> bytes:
    """Return what is in an envelope, unverified; ValueError if it cannot be read."""
    return _decode_base64(msgspec.json.decode(data, type=_Envelope).manifest)


def signed_by(data: bytes) -> list[str]:
    """Return the ids of the keys that an envelope says it is signed by, unverified; none if it cannot be read."""
    try:
        return [item.key for item in msgspec.json.decode(data, type=_Envelope).signatures]
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return []


def _decode_base64(text: str) -> bytes:
    """Decode base64 strictly: the one text that stands for these bytes, and no other."""
    try:
        data = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(f"not base64: {error}") from error
    if base64.b64encode(data).decode() != text:
        raise ValueError("base64 is not in its canonical form")
    return data
