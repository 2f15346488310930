"""A device is offered keys documents that would make it trust a key of the attacker's, or one that was revoked.

Stopped by verification (docs/protocol.md, 5.9): a document is signed by a key that is trusted before it and not revoked
by it, serial numbers only grow, and revocations are never taken back. REFUSED: the honest version goes on serving, what
the attacker signs does not serve, also after a restart, and the next honest version is installed.

    python attacks/keys_documents.py
"""

from __future__ import annotations

import base64
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from _edge import COHORT, KEY, YEAR, Device, Pair, device_and_cloud, make_update
from _parts import check, eventually, main
from cema.formats.keyring import KEYS_FORMAT, KeysDocument, encode_documents, sign_keys
from cema.formats.keys import key_id

NEXT = Ed25519PrivateKey.from_private_bytes(bytes([1]) * 32)
EVIL = Ed25519PrivateKey.from_private_bytes(bytes([2]) * 32)
Keys = list[Ed25519PrivateKey]


def document(serial: int, trusted: Keys, signer: Ed25519PrivateKey, revoked: Keys, **changes: Any) -> bytes:
    """Sign a document as an operator does."""
    now = int(time.time())
    trusted_raw, revoked_raw = (
        tuple(key.public_key().public_bytes_raw().hex() for key in keys) for keys in (trusted, revoked)
    )
    fields: dict[str, Any] = {
        "cohort": COHORT, "serial": serial, "keys": trusted_raw, "revoked": revoked_raw, "created": now,
        "expires": now + int(YEAR), "format": KEYS_FORMAT,
    }  # fmt: skip
    return sign_keys(KeysDocument(**(fields | changes)), signer)


FIRST = document(1, [KEY, NEXT], KEY, [])
SECOND = document(2, [NEXT], NEXT, [KEY])


def honest(pair: Pair) -> None:
    """Exchange the device's key for the next one, revoke the first, and install a version of the next."""
    pair.cloud.keys = encode_documents([FIRST, SECOND])
    pair.device.restart()
    pair.device.installs(pair.cloud, 3, key=NEXT)


def asked(pair: Pair) -> None:
    """Restart the device and wait until it has heard what the cloud says of keys, and of updates after that."""
    before = pair.cloud.asked_keys
    pair.device.restart()
    eventually(lambda: pair.cloud.asked_keys > before, "the device does not ask for keys")
    pair.device.has_considered(pair.cloud)


def attack(pair: Pair, *, keys: Callable[[], bytes], signer: Ed25519PrivateKey = EVIL) -> None:
    """Offer keys, and a version that the attacker has signed."""
    device, cloud = pair.device, pair.cloud
    honest(pair)
    cloud.keys = keys()
    cloud.offer(make_update(device.bundle, 4, key=signer))
    for _ in range(2):
        asked(pair)
        check(device.serves(3), f"version {device.agent.status().version} serves, after 3")
    cloud.keys = encode_documents([FIRST, SECOND])
    installs_next(device, pair)


def installs_next(device: Device, pair: Pair) -> None:
    device.installs(pair.cloud, 5, key=NEXT)


def one(serial: int, trusted: Keys, signer: Ed25519PrivateKey, revoked: Keys, **changes: Any) -> bytes:
    """Return a list with one document behind the honest ones."""
    return encode_documents([FIRST, SECOND, document(serial, trusted, signer, revoked, **changes)])


def named(name: Ed25519PrivateKey, signer: Ed25519PrivateKey) -> bytes:
    """Return a document that says to be signed by another key than that which has signed it."""
    envelope = json.loads(document(3, [EVIL], signer, []))
    envelope["signatures"][0]["key"] = key_id(name.public_key())
    return encode_documents([json.dumps(envelope, separators=(",", ":")).encode()])


def without_keys() -> bytes:
    """Return a document that names no key, well signed."""
    content = json.loads(base64.b64decode(json.loads(SECOND)["manifest"])) | {"keys": [], "serial": 3}
    data = json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
    signature = base64.b64encode(NEXT.sign(b"cema.keys/1\0" + data)).decode()
    signatures = [{"key": key_id(NEXT.public_key()), "signature": signature}]
    envelope = {"manifest": base64.b64encode(data).decode(), "signatures": signatures}
    return encode_documents([json.dumps(envelope, separators=(",", ":")).encode()])


def changed(old: bytes, new: bytes) -> bytes:
    """Return a document of the next key's, changed after it was signed."""
    envelope = json.loads(document(3, [NEXT], NEXT, [KEY]))
    content = base64.b64decode(envelope["manifest"])
    envelope["manifest"] = base64.b64encode(content.replace(old, new)).decode()
    return encode_documents([json.dumps(envelope, separators=(",", ":")).encode()])


def raw(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes_raw().hex().encode()


def highest_number(pair: Pair) -> None:
    """Let whoever has a key use the highest number of all before it is revoked: honest versions must follow."""
    device, cloud = pair.device, pair.cloud
    cloud.offer(make_update(device.bundle, 2**63 - 1, payload_of=1))
    eventually(lambda: device.agent.status().version == 2**63 - 1, "the version was never installed")
    cloud.keys = encode_documents([FIRST, SECOND])
    asked(pair)
    check(device.serves(0), f"version {device.agent.status().version} of a revoked key serves")
    asked(pair)
    check(device.serves(0), f"version {device.agent.status().version} serves after a restart")
    installs_next(device, pair)


def update_as_keys(pair: Pair) -> None:
    """Offer an update's envelope for a keys document."""
    envelope = make_update(pair.device.bundle, 9, key=NEXT).envelope
    attack(pair, keys=lambda: encode_documents([envelope]))


VARIANTS = {
    "forged": partial(attack, keys=partial(one, 3, [EVIL], EVIL, [])),
    "forged-under-a-trusted-name": partial(attack, keys=partial(named, NEXT, EVIL)),
    "changed-after-signing": partial(attack, keys=partial(changed, raw(NEXT), raw(EVIL))),
    "replayed": partial(attack, keys=lambda: encode_documents([FIRST]), signer=KEY),
    # The device has passed over an older one of a key that it trusts, or has another one of that number.
    "rolled-back": partial(attack, keys=lambda: encode_documents([document(1, [NEXT, EVIL], NEXT, [])])),
    "same-number": partial(attack, keys=lambda: encode_documents([document(2, [NEXT, EVIL], NEXT, [])])),
    "by-a-revoked-key": partial(attack, keys=partial(one, 3, [KEY, EVIL], KEY, [])),
    "a-revoked-key-comes-back": partial(attack, keys=partial(one, 3, [KEY, NEXT], NEXT, []), signer=KEY),
    "a-key-revokes-itself": partial(attack, keys=partial(one, 3, [EVIL], NEXT, [NEXT])),
    "other-cohort": partial(attack, keys=partial(one, 3, [NEXT, EVIL], NEXT, [], cohort="south")),
    "expired": partial(attack, keys=partial(one, 3, [NEXT, EVIL], NEXT, [], expires=int(time.time()) - 1)),
    "expired-before-others": partial(
        attack,
        keys=lambda: encode_documents(
            [FIRST, document(3, [NEXT, EVIL], NEXT, [], expires=int(time.time()) - 1), SECOND]
        ),
    ),
    "no-key": partial(attack, keys=without_keys),
    "truncated": partial(attack, keys=lambda: one(3, [NEXT, EVIL], NEXT, [])[:-40]),
    "no-list": partial(attack, keys=lambda: b"[" * 100_000),
    "an-update": update_as_keys,
    "updates-of-a-revoked-key": partial(attack, keys=lambda: encode_documents([FIRST, SECOND]), signer=KEY),
    "highest-number": highest_number,
}

if __name__ == "__main__":
    sys.exit(main(VARIANTS, device_and_cloud))
