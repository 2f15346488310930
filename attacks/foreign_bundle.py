"""A device is offered a bundle with a model of the attacker's.

Stopped by verification (docs/protocol.md, 6.2): a notice is signed by a key that the device trusts, for its cohort, not
expired, with a serial number that is not below the last one; every file has the digest that the notice names; the
golden batch comes out right. REFUSED: the honest version of the honest bundle goes on serving, also after a restart,
nothing is written outside the state folder, and the next honest version is installed.

    python attacks/foreign_bundle.py
"""

from __future__ import annotations

import base64
import json
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from http.server import BaseHTTPRequestHandler
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from _edge import COHORT, KEY, YEAR, Pair, device_and_cloud, make_other_bundle, make_update
from _parts import check, eventually, main
from cema.formats.bundle import Bundle
from cema.formats.bundle_notice import NOTICE_FORMAT, BundleNotice, list_files, sign_notice
from cema.formats.keyring import KEYS_FORMAT, KeysDocument, sign_keys
from cema.formats.keys import key_id

EVIL = Ed25519PrivateKey.from_private_bytes(bytes([2]) * 32)
Reply = Callable[[BaseHTTPRequestHandler, int, int, bytes], None]


def notice(bundle: Bundle, *, key: Ed25519PrivateKey = KEY, serial: int = 5, **changes: Any) -> bytes:
    """Sign a notice as an operator does."""
    fields: dict[str, Any] = {
        "base": bundle.manifest.base, "cohort": COHORT, "created": int(time.time()),
        "expires": int(time.time() + YEAR), "files": list_files(bundle), "format": NOTICE_FORMAT, "serial": serial,
    }  # fmt: skip
    return sign_notice(BundleNotice(**(fields | changes)), key)


def resealed(content: bytes, signer: Ed25519PrivateKey, name: Ed25519PrivateKey) -> bytes:
    """Put any content into an envelope that says to be signed by some key."""
    signature = base64.b64encode(signer.sign(b"cema.bundle-notice/1\0" + content)).decode()
    signatures = [{"key": key_id(name.public_key()), "signature": signature}]
    envelope = {"manifest": base64.b64encode(content).decode(), "signatures": signatures}
    return json.dumps(envelope, separators=(",", ":")).encode()


def content_of(envelope: bytes) -> bytes:
    return base64.b64decode(json.loads(envelope)["manifest"])


class Offer:
    """Answers in the cloud's place: a base that devices are to have, a notice, and files."""

    def __init__(self, pair: Pair, base: str, envelope: bytes, files: Mapping[str, bytes]) -> None:
        self._pair, self._base, self._envelope, self._files = pair, base, envelope, files
        self.piece: Reply = self.honest_piece
        self.asked = 0
        pair.cloud.instead = self.answer

    def answer(self, handler: BaseHTTPRequestHandler) -> bool:
        path = handler.path.partition("?")[0]
        if path.endswith("/updates/latest"):
            self.send(handler, 200, self._pair.cloud.envelope or b"", {"CEMA-Base": self._base})
        elif path.endswith("/bundle"):
            self.asked += 1
            self.send(handler, 200, self._envelope, {})
        elif "/bundles/" in path:
            first, last = map(int, handler.headers["Range"].removeprefix("bytes=").split("-"))
            self.piece(handler, first, last, self._files.get(path.rpartition("/")[2], b""))
        else:
            return False
        return True

    def honest_piece(self, handler: BaseHTTPRequestHandler, first: int, last: int, data: bytes) -> None:
        part = data[first : last + 1]
        self.send(handler, 206, part, {"Content-Range": f"bytes {first}-{first + len(part) - 1}/{len(data)}"})

    @staticmethod
    def send(handler: BaseHTTPRequestHandler, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)


def files_of(bundle: Bundle, named: Bundle | None = None) -> dict[str, bytes]:
    """Return the files of a bundle, perhaps under the digests of another one's."""
    under = {file.name: file.sha256 for file in list_files(named or bundle)}
    return {under[file.name]: (bundle.path / file.name).read_bytes() for file in list_files(bundle)}


def evil_bundle(pair: Pair, **changes: Any) -> Bundle:
    return make_other_bundle(pair.device.folder.parent / "evil", number=77, **changes)


def stands(pair: Pair, offer: Offer, bundle: Bundle) -> None:
    """Check that version 3 of an honest bundle serves whatever is offered, also after a restart."""
    device = pair.device
    for _ in range(2):
        before = offer.asked
        eventually(lambda: offer.asked > before, "the device does not ask for the notice")  # noqa: B023
        eventually(
            lambda: "migrator" in (device.agent.status().last_error or ""),
            "the device does not say what is wrong",
        )
        check(device.agent.bundle.manifest.base == bundle.manifest.base, "another bundle serves")
        check(device.serves(3), f"version {device.agent.status().version} serves, after 3")
        device.restart()
    outside = [p.name for p in device.folder.parent.iterdir()]
    check(
        set(outside) <= {"bundle", "state", "evil", "honest"},
        f"outside of the state folder there are {outside}",
    )
    pair.cloud.instead = lambda _: False
    device.installs(pair.cloud, 5)


def attack(
    pair: Pair,
    *,
    make: Callable[[Bundle], bytes],
    piece: Reply | None = None,
    instead_of: bool = False,
    golden: np.ndarray | None = None,
) -> None:
    """Offer a notice and files; `instead_of` an honest bundle, whose notice is good."""
    pair.device.installs(pair.cloud, 3)
    evil = evil_bundle(pair, **({} if golden is None else {"golden_logits": golden}))
    honest = make_other_bundle(pair.device.folder.parent / "honest", number=8)
    offered = honest if instead_of else evil
    files = files_of(evil, honest) if instead_of else files_of(evil)
    offer = Offer(pair, offered.manifest.base, make(offered), files)
    if piece is not None:
        offer.piece = piece
    stands(pair, offer, pair.device.bundle)


def rolled_back(pair: Pair) -> None:
    """Offer an older notice, well signed, to a device that has followed a later one."""
    device = pair.device
    honest = make_other_bundle(device.folder.parent / "honest", number=8)
    Offer(pair, honest.manifest.base, notice(honest, serial=9), files_of(honest))
    eventually(
        lambda: device.agent.bundle.manifest.base == honest.manifest.base,
        "the honest bundle never came to serve",
    )
    older = evil_bundle(pair)
    offer = Offer(pair, older.manifest.base, notice(older, serial=8), files_of(older))
    for _ in range(2):
        before = offer.asked
        eventually(lambda: offer.asked > before, "the device does not ask for the notice")  # noqa: B023
        eventually(lambda: "old" in device.agent.status().rejected_bundles, "the older notice is not refused")
        check(
            device.agent.bundle.manifest.base == honest.manifest.base, "the bundle of the older notice serves"
        )
        device.restart()


def endless(handler: BaseHTTPRequestHandler, first: int, last: int, data: bytes) -> None:
    """Answer with more than was asked for, without end."""
    handler.send_response(206)
    handler.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
    handler.send_header("Content-Length", str(1 << 40))
    handler.end_headers()
    while True:
        handler.wfile.write(b"\0" * 65_536)


def elsewhere(bundle: Bundle) -> bytes:
    """Return a notice, well signed, whose first file is to be written outside the folder."""
    content = json.loads(content_of(notice(bundle)))
    content["files"][0]["name"] = "../../escaped"
    return resealed(json.dumps(content, sort_keys=True, separators=(",", ":")).encode(), KEY, KEY)


def keys_document(_: Bundle) -> bytes:
    raw = EVIL.public_key().public_bytes_raw().hex()
    document = KeysDocument(
        cohort=COHORT, serial=9, keys=(raw,), revoked=(), created=1, expires=2**40, format=KEYS_FORMAT
    )
    return sign_keys(document, KEY)


def changed(bundle: Bundle) -> bytes:
    """Return a notice of another bundle of the publisher's, changed after it was signed."""
    envelope = json.loads(notice(bundle, base="0" * 64))
    content = base64.b64decode(envelope["manifest"]).replace(b"0" * 64, bundle.manifest.base.encode())
    envelope["manifest"] = base64.b64encode(content).decode()
    return json.dumps(envelope, separators=(",", ":")).encode()


VARIANTS = {
    "forged": partial(attack, make=partial(notice, key=EVIL)),
    "forged-under-a-trusted-name": partial(attack, make=lambda b: resealed(content_of(notice(b)), EVIL, KEY)),
    "changed-after-signing": partial(attack, make=changed),
    "other-cohort": partial(attack, make=partial(notice, cohort="south")),
    "expired": partial(attack, make=partial(notice, expires=int(time.time()) - 1)),
    "rolled-back": rolled_back,
    "other-files": partial(attack, make=notice, instead_of=True),
    "endless-files": partial(attack, make=notice, piece=endless),
    "another-base": partial(attack, make=partial(notice, base="1" * 64)),
    "outside-the-folder": partial(attack, make=elsewhere),
    "wrong-answers": partial(attack, make=notice, golden=np.ones((4, 10), np.float32)),
    "a-keys-document": partial(attack, make=keys_document),
    "an-update": partial(attack, make=lambda b: make_update(b, 9).envelope),
    "no-envelope": partial(attack, make=lambda _: b"[" * 60_000),
}

if __name__ == "__main__":
    sys.exit(main(VARIANTS, device_and_cloud))
