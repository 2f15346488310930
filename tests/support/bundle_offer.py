"""A cohort that was given another base model, with files of no real bundle."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

from cloud_support import StillEngine
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cema.cloud.bundle_folder import BundleFolder
from cema.cloud.store.bases import Migration, bases_of
from cema.formats.bundle_notice import NOTICE_FORMAT, BundleNotice, NoticeFile, sign_notice

__all__ = ["CONTENT", "migrated", "sha256"]

CONTENT = {
    name: name.encode() * 9 for name in ("golden.safetensors", "manifest.json", "model.onnx", "norm.bin")
}
_KEY = Ed25519PrivateKey.from_private_bytes(bytes(32))


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def migrated(engine: StillEngine, *, base: str = "1" * 64, serial: int = 1) -> tuple[bytes, dict[str, bytes]]:
    """Bring the cohort `north` to another base; returns the notice and the files that devices are to fetch."""
    files = tuple(NoticeFile(name=n, bytes=len(c), sha256=sha256(c)) for n, c in sorted(CONTENT.items()))
    notice = BundleNotice(
        base=base, cohort="north", created=1, expires=2**40, files=files, format=NOTICE_FORMAT, serial=serial
    )
    folder = BundleFolder(Path(engine.config.data))
    folder.path.mkdir(exist_ok=True)
    for content in CONTENT.values():
        folder.file(sha256(content)).write_bytes(content)
    signed = sign_notice(notice, _KEY)
    change = Migration(old=engine.store.status("north")["base"], new=base, serial=serial, notice=signed)
    bases_of(engine.store).migrate("north", change, actor="ann", now=time.time())
    return signed, CONTENT
