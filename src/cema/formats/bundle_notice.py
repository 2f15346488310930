r"""Telling devices of a new base model: a signed notice that names the files of its bundle by their digests.

*Notice*: JSON that says for which cohort it is, which base model its devices are to have from now on, and the files of
that bundle, under a serial number that only grows. It travels in the envelope of an update, signed over
``b"cema.bundle-notice/1\0"`` and its bytes. The keys in a bundle's folder are no part of it: a device goes on trusting
the keys that it trusts.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

import msgspec

from cema._util.checks import is_sha256
from cema.errors import BundleRejected, FormatError, UpdateRejected
from cema.formats.bundle import Bundle
from cema.formats.bundle_files import (
    GOLDEN_FILE,
    MANIFEST_FILE,
    MODEL_FILE,
    SOURCE_STATISTICS_FILE,
    STATISTICS_FILE,
    digest_of,
)
from cema.formats.bundle_manifest import NORM_FILE
from cema.formats.envelope import content_of, open_envelope, seal
from cema.formats.keys import Signer

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

__all__ = [
    "NOTICE_FORMAT",
    "BundleNotice",
    "NoticeFile",
    "list_files",
    "read_notice",
    "sign_notice",
    "verify_notice",
]

NOTICE_FORMAT = "cema.bundle-notice/1"
"""What a notice says that it is."""

_CONTEXT = NOTICE_FORMAT.encode() + b"\0"
_NEEDED = {GOLDEN_FILE, MANIFEST_FILE, MODEL_FILE, NORM_FILE}
_STATISTICS = {SOURCE_STATISTICS_FILE, STATISTICS_FILE}


class NoticeFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One file of a bundle.

    Attributes
    ----------
    name : str
        Its name in the bundle's folder.
    bytes : int
        Its size, at least 1.
    sha256 : str
        Its digest.
    """

    bytes: int
    name: str
    sha256: str

    def __post_init__(self) -> None:
        if self.bytes < 1:
            raise ValueError(f"expected {self.name[:80]!r} to have at least 1 byte, got {self.bytes}")
        if not is_sha256(self.sha256):
            raise ValueError(
                f"expected the digest of {self.name[:80]!r} as a SHA-256 in lowercase hex, got {self.sha256[:80]!r}"
            )


class BundleNotice(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which bundle the devices of a cohort are to have; this is what gets signed.

    Attributes
    ----------
    cohort : str
        The cohort whose devices it is for.
    serial : int
        Its number, at least 1: a device refuses one that is below that of the last notice it has followed.
    base : str
        The ``base`` of the bundle (`cema.formats.bundle_manifest.base_digest`).
    files : tuple of NoticeFile
        The files of the bundle but for its keys, sorted by name.
    created, expires : int
        Unix times in seconds; a device does not begin to follow it from `expires` on.
    format : str
        `NOTICE_FORMAT`; there is no default, so that a notice without it is refused.

    Raises
    ------
    ValueError
        If a field is out of its range, or the files are not those of a bundle.
    """

    base: str
    cohort: str
    created: int
    expires: int
    files: tuple[NoticeFile, ...]
    format: str
    serial: int

    def __post_init__(self) -> None:
        if self.format != NOTICE_FORMAT:
            raise ValueError(f"expected the format {NOTICE_FORMAT!r}, got {self.format!r}")
        if not 1 <= self.serial < 2**63:
            raise ValueError(f"expected a serial number of at least 1, got {self.serial}")
        if not is_sha256(self.base):
            raise ValueError(f"expected base to be a SHA-256 in lowercase hex, got {self.base[:80]!r}")
        names = [file.name for file in self.files]
        if names != sorted(set(names)) or set(names) not in (_NEEDED, _NEEDED | _STATISTICS):
            raise ValueError(
                f"expected the files {sorted(_NEEDED)}, with {sorted(_STATISTICS)} or without, each once and sorted, "
                f"got {[name[:80] for name in names[:8]]}"
            )

    @property
    def total_bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.bytes for file in self.files)


def list_files(bundle: Bundle) -> tuple[NoticeFile, ...]:
    """Return the files of a bundle as a notice lists them; each is read once.

    Raises
    ------
    FormatError
        If one cannot be read.
    """
    names = _NEEDED | (_STATISTICS if bundle.manifest.statistics else set())
    files = []
    for name in sorted(names):
        path = bundle.path / name
        files.append(NoticeFile(name=name, sha256=digest_of(path), bytes=path.stat().st_size))
    return tuple(files)


def sign_notice(notice: BundleNotice, *signers: Signer) -> bytes:
    """Sign a notice.

    Parameters
    ----------
    notice : BundleNotice
        What to sign.
    *signers : Signer
        The devices trust one of their keys at least.

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
    return seal(_canonical(notice), signers, context=_CONTEXT)


def verify_notice(
    envelope: bytes,
    *,
    public_keys: Mapping[str, Ed25519PublicKey],
    cohort: str,
    serial: int,
    now: float,
    revoked: Collection[str] = (),
) -> BundleNotice:
    """Verify an envelope and everything its notice says.

    Parameters
    ----------
    envelope : bytes
        What `sign_notice` returned.
    public_keys : mapping of str to Ed25519PublicKey
        The keys this device trusts, by `cema.formats.keys.key_id`.
    cohort : str
        This device's cohort.
    serial : int
        That of the last notice that this device has followed; 0 before the first.
    now : float
        Unix time in seconds.
    revoked : collection of str
        Ids of revoked keys: what these alone have signed is refused as ``revoked_key``.

    Returns
    -------
    BundleNotice
        The notice, which can be trusted.

    Raises
    ------
    BundleRejected
        For anything that is not right; nothing of the notice is looked at before a signature is verified.
    """
    try:
        content = open_envelope(envelope, public_keys, context=_CONTEXT, revoked=revoked).content
    except UpdateRejected as error:
        raise BundleRejected(error.reason, error.message or "") from error
    try:
        notice = msgspec.json.decode(content, type=BundleNotice)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BundleRejected("malformed", f"the notice does not follow {NOTICE_FORMAT}: {error}") from error
    if _canonical(notice) != content:
        raise BundleRejected(
            "malformed", "the notice is not in its canonical encoding, or has a member twice"
        )
    if notice.cohort != cohort:
        raise BundleRejected(
            "wrong_cohort", f"it is made for {notice.cohort!r}, this device is in {cohort!r}"
        )
    if notice.serial < serial:
        raise BundleRejected("old", f"serial number {notice.serial} is below {serial}, which was followed")
    if now >= notice.expires:
        raise BundleRejected(
            "expired", f"it expired at {notice.expires}, now is {now:.0f}: check the device's clock"
        )
    return notice


def read_notice(envelope: bytes) -> BundleNotice:
    """Return what is in an envelope, not verified: for who has signed it.

    Raises
    ------
    FormatError
        If it holds no notice.
    """
    try:
        return msgspec.json.decode(content_of(envelope), type=BundleNotice)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise FormatError(f"expected a bundle notice, got something else: {error}") from error


def _canonical(notice: BundleNotice) -> bytes:
    return msgspec.json.encode(notice, order="sorted")
