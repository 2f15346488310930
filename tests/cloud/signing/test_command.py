from __future__ import annotations

import time
from pathlib import Path

import psutil
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from signing_command import command

from cema.cloud.signing.command import CommandSigner
from cema.errors import SigningError
from cema.formats.keys import generate_key, load_private_key

DATA = bytes(range(256)) * 4


@pytest.fixture
def key(tmp_path: Path) -> Path:
    generate_key(tmp_path / "k.key")
    return tmp_path / "k.key"


def test_the_command_s_signature_is_the_key_s(key: Path) -> None:
    private = load_private_key(key)
    signer = CommandSigner(command(key), private.public_key(), timeout_seconds=60)
    assert signer.public_key() == private.public_key()
    assert signer.sign(DATA) == private.sign(DATA)
    assert signer.sign(b"") == private.sign(b"")


@pytest.mark.parametrize(
    ("mode", "told"),
    [
        ("refuses", "status 3"),
        ("fails", "status 1"),
        ("short", "of 64 bytes, got 40"),
        ("hex", "of 64 bytes, got more"),
        ("endless", "got more"),
        ("ignores", "not one by the key"),
    ],
)
def test_what_is_no_signature_is_never_taken_for_one(key: Path, mode: str, told: str) -> None:
    signer = CommandSigner(command(key, mode), load_private_key(key).public_key(), timeout_seconds=60)
    with pytest.raises(SigningError, match=told):
        signer.sign(DATA)


@pytest.mark.parametrize("mode", ["hangs", "lingers"])
def test_a_command_that_takes_too_long_is_killed_with_what_it_started(key: Path, mode: str) -> None:
    signer = CommandSigner(command(key, mode), load_private_key(key).public_key(), timeout_seconds=3)
    with pytest.raises(SigningError, match="within 3 s"):
        signer.sign(DATA)
    pids = key.with_suffix(".pids").read_text().split()
    assert len(pids) == 1 + (mode == "hangs")
    deadline = time.monotonic() + 60
    while not all(ended(int(pid)) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def ended(pid: int) -> bool:
    """Tell whether a process is over; one whose parent was killed too may wait to be collected."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_a_signature_by_another_key_is_refused(key: Path) -> None:
    signer = CommandSigner(command(key), Ed25519PrivateKey.generate().public_key(), timeout_seconds=60)
    with pytest.raises(SigningError, match="not one by the key"):
        signer.sign(DATA)


def test_a_command_that_is_not_there_is_told(key: Path) -> None:
    signer = CommandSigner(["/no/such/kms"], load_private_key(key).public_key(), timeout_seconds=60)
    with pytest.raises(SigningError, match="'/no/such/kms': it cannot be started: No such file"):
        signer.sign(DATA)
