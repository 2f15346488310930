"""A device is offered updates put together from good parts: manifests, payloads and signatures that do not belong
together.

Stopped by verification (docs/protocol.md, 5.6): the signature covers the manifest's bytes, the manifest names cohort,
base and the payload's digest, every byte has one encoding only, and golden logits belong to one norm state. REFUSED:
the old version goes on serving, the rejection is counted, and the honest update is installed afterwards.

    python attacks/mix_and_match.py
"""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from _edge import Pair, Update, device_and_cloud, make_update
from _parts import check, eventually, main
from cema.formats.bundle import Bundle
from cema.formats.keys import key_id

OTHER = Ed25519PrivateKey.from_private_bytes(bytes(32))


def attack(pair: Pair, *, forge: Callable[[Bundle, Update, Update], tuple[bytes, bytes]]) -> None:
    """Offer what is forged of versions 2 and 3, as an envelope and the payload under every digest it may name."""
    device, cloud = pair.device, pair.cloud
    device.installs(cloud, 1)
    two, three = (make_update(device.bundle, version) for version in (2, 3))
    envelope, payload = forge(device.bundle, two, three)
    manifest = json.loads(base64.b64decode(json.loads(envelope)["manifest"]))
    cloud.artifacts |= dict.fromkeys(
        (two.manifest.payload, three.manifest.payload, manifest["payload"]), payload
    )
    cloud.envelope = envelope
    eventually(lambda: bool(device.agent.status().rejected_updates), "nothing was counted as rejected")
    check(device.serves(1), f"version {device.agent.status().version} serves")
    device.restart()
    check(device.serves(1), f"version {device.agent.status().version} serves after a restart")
    device.installs(cloud, 2)


def payload(bundle: Bundle, two: Update, three: Update, *, change: Callable[[Update, Update], bytes]) -> Any:
    return three.envelope, change(two, three)


def signed(bundle: Bundle, two: Update, three: Update, **changes: Any) -> Any:
    """Sign with good or other keys what is not for this device."""
    update = make_update(bundle, 3, **changes)
    return update.envelope, update.payload


def envelope(bundle: Bundle, two: Update, three: Update, *, change: Callable[[dict, dict], object]) -> Any:
    """Change the envelope of version 3, given that of version 2."""
    changed = json.loads(three.envelope)
    change(changed, json.loads(two.envelope))
    return json.dumps(changed, separators=(",", ":")).encode(), three.payload


def borrow(three: dict, two: dict) -> None:
    three["signatures"] = two["signatures"]


def unsign(three: dict, two: dict) -> None:
    three["signatures"] = []


def rename(three: dict, two: dict) -> None:
    """Let another key's signature name the trusted key."""
    trusted = three["signatures"][0]["key"]
    content = base64.b64decode(three["manifest"])
    raw = OTHER.sign(b"cema.update/1\0" + content)
    three["signatures"] = [{"key": trusted, "signature": base64.b64encode(raw).decode()}]


def add_good_of_other(three: dict, two: dict) -> None:
    """Put a signature of version 2 under the trusted key beside a right one under a key that nobody trusts."""
    raw = OTHER.sign(b"cema.update/1\0" + base64.b64decode(three["manifest"]))
    mine = {"key": key_id(OTHER.public_key()), "signature": base64.b64encode(raw).decode()}
    three["signatures"] = [mine, two["signatures"][0]]


def renumber(three: dict, two: dict) -> None:
    content = base64.b64decode(three["manifest"]).replace(b'"version":3', b'"version":9')
    three["manifest"] = base64.b64encode(content).decode()


VARIANTS: dict[str, Callable[[Pair], None]] = {
    name: partial(attack, forge=forge)
    for name, forge in {
        "payload-of-another-version": partial(payload, change=lambda two, three: two.payload),
        "payload-with-one-bit-changed": partial(
            payload, change=lambda two, three: three.payload[:-1] + bytes([three.payload[-1] ^ 1])
        ),
        "payload-cut-short": partial(payload, change=lambda two, three: three.payload[:-1]),
        "payload-with-more-behind": partial(payload, change=lambda two, three: three.payload + b"\0"),
        "golden-logits-of-another": partial(signed, golden_of=2),
        "another-cohort": partial(signed, cohort="south"),
        "another-base": partial(signed, base="0" * 64),
        "another-key": partial(signed, key=OTHER),
        "another-key-by-a-trusted-name": partial(envelope, change=rename),
        "no-signature": partial(envelope, change=unsign),
        "signature-of-another-version": partial(envelope, change=borrow),
        "wrong-beside-a-strangers-right": partial(envelope, change=add_good_of_other),
        "version-number-changed": partial(envelope, change=renumber),
    }.items()
}

if __name__ == "__main__":
    sys.exit(main(VARIANTS, device_and_cloud))
