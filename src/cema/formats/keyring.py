r"""Which keys a device trusts: those of its bundle, and what signed documents have made of them since.

*Document*: JSON that says which public keys are trusted from now on and which are revoked, for one cohort, under a
serial number that only grows. It travels in the envelope of an update, signed over ``b"cema.keys/1\0"`` and its bytes,
by at least one key that is trusted before it and not revoked by it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import msgspec

from cema._util.checks import is_sha256
from cema.errors import FormatError, KeysRejected, UpdateRejected
from cema.formats.envelope import open_envelope, seal
from cema.formats.keys import Signer, key_id

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

__all__ = [
    "KEYS_FORMAT",
    "MOST_DOCUMENTS",
    "Keyring",
    "KeysDocument",
    "decode_documents",
    "encode_documents",
    "sign_keys",
]

KEYS_FORMAT = "cema.keys/1"
"""What a keys document says that it is."""

MOST_DOCUMENTS = 64
"""Documents that a cohort has in all, at most."""

_CONTEXT = KEYS_FORMAT.encode() + b"\0"
_MOST_KEYS = 16
_MOST_REVOKED = 256


class KeysDocument(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which keys are trusted from now on; this is what gets signed.

    Attributes
    ----------
    cohort : str
        The cohort whose devices it is for.
    serial : int
        Its number, at least 1: a device refuses one that is not above that of the last document.
    keys : tuple of str
        The public keys that are trusted from now on, 1 to 16: 32 raw bytes each, in lowercase hexadecimal.
    revoked : tuple of str
        Those that are revoked for ever, in the same form, at most 256.
    created, expires : int
        Unix times in seconds; a device that does not have it yet refuses it from `expires` on.
    format : str
        `KEYS_FORMAT`; there is no default, so that a document without it is refused.

    Raises
    ------
    ValueError
        If a field is out of its range, names a key twice, or both trusts and revokes it.
    """

    cohort: str
    serial: int
    keys: tuple[str, ...]
    revoked: tuple[str, ...]
    created: int
    expires: int
    format: str

    def __post_init__(self) -> None:
        if self.format != KEYS_FORMAT:
            raise ValueError(f"expected the format {KEYS_FORMAT!r}, got {self.format!r}")
        if not 1 <= self.serial < 2**63:
            raise ValueError(f"expected a serial number of at least 1, got {self.serial}")
        if not 1 <= len(self.keys) <= _MOST_KEYS:
            raise ValueError(f"expected 1 to {_MOST_KEYS} keys, got {len(self.keys)}")
        if len(self.revoked) > _MOST_REVOKED:
            raise ValueError(f"expected at most {_MOST_REVOKED} revoked keys, got {len(self.revoked)}")
        named = (*self.keys, *self.revoked)
        for key in named:
            if not is_sha256(key):  # 32 bytes in lowercase hexadecimal, as a digest
                raise ValueError(f"expected a key as 64 lowercase hexadecimal digits, got {key[:80]!r}")
        if len(set(named)) < len(named):
            raise ValueError("a key is named twice, or both trusted and revoked")


@dataclass(frozen=True)
class Keyring:
    """The keys that a device trusts, and how it came to trust them.

    Attributes
    ----------
    cohort : str
        Whose documents are accepted.
    trusted : mapping of str to Ed25519PublicKey
        By `cema.formats.keys.key_id`: what new updates and new documents are verified with.
    known : mapping of str to Ed25519PublicKey
        These, and those that were trusted once and not revoked: what remembered updates are verified with.
    revoked : frozenset of str
        Raw keys, in hexadecimal, that are never trusted again.
    serial : int
        That of the last document; 0 before the first.
    expires : float
        When a device that does not have the last document may no longer accept it, in unix seconds; infinity before the
        first.
    documents : tuple of bytes
        The envelopes that were accepted, oldest first.
    """

    cohort: str
    trusted: Mapping[str, Ed25519PublicKey]
    known: Mapping[str, Ed25519PublicKey]
    revoked: frozenset[str] = frozenset()
    serial: int = 0
    expires: float = math.inf
    documents: tuple[bytes, ...] = ()

    @classmethod
    def of(cls, cohort: str, public_keys: Mapping[str, Ed25519PublicKey]) -> Keyring:
        """Return the keyring of a device that has seen no document: it trusts its bundle's keys."""
        return cls(cohort, dict(public_keys), dict(public_keys))

    @property
    def revoked_ids(self) -> frozenset[str]:
        """The revoked keys by `cema.formats.keys.key_id`."""
        return frozenset(key_id(_public_key(raw)) for raw in self.revoked)

    def accept(self, envelope: bytes, *, now: float | None) -> Keyring:
        """Return the keyring after one more document.

        Parameters
        ----------
        envelope : bytes
            What `sign_keys` returned.
        now : float or None
            Unix seconds. None for a document that was accepted before: it does not expire.

        Raises
        ------
        KeysRejected
            For anything that is not right; nothing of the document is looked at before a signature is verified.
        """
        try:
            opened = open_envelope(envelope, self.trusted, context=_CONTEXT, revoked=self.revoked_ids)
        except UpdateRejected as error:
            raise KeysRejected(error.reason, error.message or "") from error
        document = _decode(opened.content)
        if document.cohort != self.cohort:
            raise KeysRejected(
                "wrong_cohort", f"it is made for {document.cohort!r}, this device is in {self.cohort!r}"
            )
        if document.serial <= self.serial:
            raise KeysRejected("old", f"serial number {document.serial} is not above {self.serial}")
        if now is not None and now >= document.expires:
            raise _expired(document.expires, now)
        signers = {_raw(self.trusted[name]) for name in opened.signers}
        if not signers - set(document.revoked):
            raise KeysRejected("revoked_key", "it is signed by no other key than those that it revokes")
        if again := self.revoked & set(document.keys):
            raise KeysRejected("revoked_key", f"it trusts {sorted(again)}, which an earlier one has revoked")
        if len(self.documents) >= MOST_DOCUMENTS:
            raise KeysRejected(
                "malformed", f"there are {MOST_DOCUMENTS} documents already; provision new bundles"
            )
        return self._after(document, envelope)

    def _after(self, document: KeysDocument, envelope: bytes) -> Keyring:
        trusted = {key_id(key): key for key in map(_public_key, document.keys)}
        if len(trusted) < len(document.keys):
            raise KeysRejected("malformed", "two of its keys have the same id; make another key")
        revoked = self.revoked | set(document.revoked)
        known = {name: key for name, key in self.known.items() if _raw(key) not in revoked} | trusted
        return replace(
            self, trusted=trusted, known=known, revoked=revoked, serial=document.serial,
            expires=document.expires, documents=(*self.documents, envelope),
        )  # fmt: skip

    def accept_all(
        self, envelopes: Iterable[bytes], *, now: float | None
    ) -> tuple[Keyring, KeysRejected | None]:
        """Return the keyring after all documents of a list that are right and new, in its order.

        Only the last that is accepted may not be expired: a device that was away for long needs those before it to
        verify it.

        Returns
        -------
        keyring : Keyring
            `self` when nothing changes.
        rejection : KeysRejected or None
            Why the newest document of the list was refused, if it was and is not merely one that is known.
        """
        keyring, rejection = self, None
        for envelope in envelopes:
            if envelope in keyring.documents:
                rejection = None
                continue
            try:
                keyring, rejection = keyring.accept(envelope, now=None), None
            except KeysRejected as error:
                rejection = error
        if keyring is not self and now is not None and now >= keyring.expires:
            return self, _expired(keyring.expires, now)
        return keyring, rejection


def sign_keys(document: KeysDocument, *signers: Signer) -> bytes:
    """Sign a keys document.

    Parameters
    ----------
    document : KeysDocument
        What to sign.
    *signers : Signer
        One of them at least has a key that the devices trust before this document and that it does not revoke.

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
    return seal(_canonical(document), signers, context=_CONTEXT)


class _Documents(msgspec.Struct, frozen=True, kw_only=True):
    documents: tuple[msgspec.Raw, ...]


def encode_documents(envelopes: Iterable[bytes]) -> bytes:
    """Return a list of documents as a cloud offers it and a device remembers it: JSON, each envelope as it is."""
    return msgspec.json.encode(_Documents(documents=tuple(msgspec.Raw(envelope) for envelope in envelopes)))


def decode_documents(data: bytes) -> tuple[bytes, ...]:
    """Return the envelopes of a list of documents, not verified.

    Raises
    ------
    FormatError
        If it is no such list, or one of more than `MOST_DOCUMENTS`.
    """
    try:
        documents = msgspec.json.decode(data, type=_Documents).documents
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise FormatError(f"expected a list of keys documents, got something else: {error}") from error
    if len(documents) > MOST_DOCUMENTS:
        raise FormatError(f"expected at most {MOST_DOCUMENTS} keys documents, got {len(documents)}")
    return tuple(bytes(document) for document in documents)


def _expired(expires: float, now: float) -> KeysRejected:
    return KeysRejected(
        "expired",
        f"it expired at {expires:.0f}, now is {now:.0f}: check the device's clock, or have the cloud's operator make a "
        "newer one (cema keys rotate)",
    )


def _decode(content: bytes) -> KeysDocument:
    try:
        document = msgspec.json.decode(content, type=KeysDocument)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise KeysRejected("malformed", f"the document does not follow {KEYS_FORMAT}: {error}") from error
    if _canonical(document) != content:
        raise KeysRejected(
            "malformed", "the document is not in its canonical encoding, or has a member twice"
        )
    return document


def _canonical(document: KeysDocument) -> bytes:
    return msgspec.json.encode(document, order="sorted")


def _raw(key: Ed25519PublicKey) -> str:
    return key.public_bytes_raw().hex()


def _public_key(raw: str) -> Ed25519PublicKey:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (  # noqa: PLC0415 - as in `keys`
        Ed25519PublicKey,
    )

    return Ed25519PublicKey.from_public_bytes(bytes.fromhex(raw))
