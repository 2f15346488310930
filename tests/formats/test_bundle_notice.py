"""Bundle notices: what tells a device of a new base model, and what must not."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from edge_support import make_bundle, make_bundle_with_statistics
from hypothesis import given
from hypothesis import strategies as st

from cema.errors import BundleRejected, FormatError
from cema.formats.bundle_notice import (
    NOTICE_FORMAT,
    BundleNotice,
    NoticeFile,
    list_files,
    sign_notice,
    verify_notice,
)
from cema.formats.keyring import KEYS_FORMAT, KeysDocument, sign_keys
from cema.formats.keys import key_id

KEY, OTHER = (Ed25519PrivateKey.from_private_bytes(bytes([n]) * 32) for n in (1, 2))
NEEDED = ("golden.safetensors", "manifest.json", "model.onnx", "norm.bin")
NOW = 1500.0


def files(*names: str) -> tuple[NoticeFile, ...]:
    return tuple(NoticeFile(name=name, bytes=3, sha256="a" * 64) for name in names)


def notice(**changes: Any) -> BundleNotice:
    fields: dict[str, Any] = {
        "base": "b" * 64, "cohort": "north", "created": 1000, "expires": 2000, "files": files(*NEEDED),
        "format": NOTICE_FORMAT, "serial": 3,
    }  # fmt: skip
    return BundleNotice(**(fields | changes))


def verified(envelope: bytes, **changes: Any) -> BundleNotice:
    given: dict[str, Any] = {
        "public_keys": {key_id(KEY.public_key()): KEY.public_key()}, "cohort": "north", "serial": 3, "now": NOW
    }  # fmt: skip
    return verify_notice(envelope, **(given | changes))


def refused(envelope: bytes, **changes: Any) -> str:
    with pytest.raises(BundleRejected) as caught:
        verified(envelope, **changes)
    return caught.value.reason


def resealed(content: bytes) -> bytes:
    """Sign any bytes as a notice, without the code's own encoding."""
    context = b"cema.bundle-notice/1\0"
    signature = {
        "key": key_id(KEY.public_key()),
        "signature": base64.b64encode(KEY.sign(context + content)).decode(),
    }
    envelope = {"manifest": base64.b64encode(content).decode(), "signatures": [signature]}
    return json.dumps(envelope, separators=(",", ":")).encode()


def test_a_notice_comes_back_as_it_was_signed() -> None:
    made = notice()
    assert verified(sign_notice(made, OTHER, KEY)) == made
    assert made.total_bytes == 12


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"cohort": "south"}, "wrong_cohort"),
        ({"serial": 4}, "old"),
        ({"now": 2000.0}, "expired"),
        ({"public_keys": {}}, "unknown_key"),
        ({"public_keys": {}, "revoked": [key_id(KEY.public_key())]}, "revoked_key"),
        ({"public_keys": {key_id(KEY.public_key()): OTHER.public_key()}}, "bad_signature"),
    ],
)
def test_what_is_not_for_this_device_now_is_refused(changes: dict[str, Any], reason: str) -> None:
    envelope = sign_notice(notice(), KEY)
    assert verified(envelope) == notice()
    assert refused(envelope, **changes) == reason


def test_the_same_notice_may_be_followed_again() -> None:
    assert verified(sign_notice(notice(serial=3), KEY), serial=3).serial == 3


@pytest.mark.parametrize(
    "names",
    [
        NEEDED[:-1],
        NEEDED[::-1],
        (*NEEDED, "norm.bin"),
        (*NEEDED, "statistics.bin"),
        (*NEEDED, "../../etc/passwd"),
        ("keys/a.pub", *NEEDED),
        (),
    ],
)
def test_other_files_than_those_of_a_bundle_are_refused(names: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="expected the files"):
        notice(files=files(*names))
    content = msgspec.to_builtins(notice()) | {"files": msgspec.to_builtins(files(*names))}
    assert refused(resealed(msgspec.json.encode(content, order="sorted"))) == "malformed"


def test_a_notice_that_can_be_read_in_two_ways_is_refused() -> None:
    content = msgspec.json.encode(notice(), order="sorted")
    assert verified(resealed(content)) == notice()
    for spoilt in (
        content + b" ",
        b'{"serial":9,' + content[1:],
        content.replace(b'"serial":3', b'"serial":3.0'),
    ):
        assert refused(resealed(spoilt)) == "malformed"


def test_a_keys_document_is_never_taken_for_a_notice() -> None:
    raw = KEY.public_key().public_bytes_raw().hex()
    document = KeysDocument(
        cohort="north", serial=9, keys=(raw,), revoked=(), created=1000, expires=2000, format=KEYS_FORMAT
    )
    assert refused(sign_keys(document, KEY)) == "bad_signature"


@given(st.binary(max_size=200))
def test_whatever_comes_is_refused_with_a_reason(data: bytes) -> None:
    assert refused(data) in {"malformed", "unsigned"}


@given(st.data())
def test_no_byte_of_an_envelope_may_change(data: st.DataObject) -> None:
    envelope = bytearray(sign_notice(notice(), KEY))
    place = data.draw(st.integers(0, len(envelope) - 1))
    envelope[place] ^= data.draw(st.integers(1, 255))
    assert refused(bytes(envelope)) in {"malformed", "unsigned", "unknown_key", "bad_signature"}


def test_the_files_of_a_bundle_are_listed_without_its_keys(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "plain", KEY)
    found = list_files(bundle)
    assert [file.name for file in found] == list(NEEDED)
    assert {file.name: file.bytes for file in found} == {n: (bundle.path / n).stat().st_size for n in NEEDED}
    assert next(file.sha256 for file in found if file.name == "model.onnx") == bundle.manifest.base
    observing = make_bundle_with_statistics(tmp_path / "observing", KEY)
    names = [file.name for file in list_files(observing)]
    assert names == sorted((*NEEDED, "statistics.bin", "statistics.onnx"))
    (observing.path / "norm.bin").unlink()
    with pytest.raises(FormatError, match=r"norm\.bin"):
        list_files(observing)
