"""Keys documents, as an operator makes them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from edge_support import COHORT

from cema.formats.keyring import KEYS_FORMAT, KeysDocument, sign_keys


def make_keys(
    serial: int,
    trusted: Sequence[Ed25519PrivateKey],
    signers: Sequence[Ed25519PrivateKey],
    revoked: Sequence[Ed25519PrivateKey] = (),
    **changes: Any,
) -> bytes:
    """Sign a document that is valid for an hour."""
    now = int(time.time())
    raw = [[key.public_key().public_bytes_raw().hex() for key in keys] for keys in (trusted, revoked)]
    fields: dict[str, Any] = {
        "cohort": COHORT, "serial": serial, "keys": tuple(raw[0]), "revoked": tuple(raw[1]), "created": now,
        "expires": now + 3600, "format": KEYS_FORMAT,
    }  # fmt: skip
    return sign_keys(KeysDocument(**(fields | changes)), *signers)
