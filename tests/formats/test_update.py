from __future__ import annotations

import base64
import contextlib
import hashlib
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cema.errors import FormatError, UpdateRejected
from cema.formats.keys import key_id
from cema.formats.payload import Payload, check_norm_state, decode_payload, encode_payload, round_norm_state
from cema.formats.update import UPDATE_FORMAT, UpdateManifest, sign_update, verify_payload, verify_update
from cema.ondevice.drift import Domain

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OTHER_KEY = Ed25519PrivateKey.from_private_bytes(bytes(32))
TRUSTED = {key_id(KEY.public_key()): KEY.public_key()}
BASE = "ab" * 32

tensors = hnp.arrays(
    np.float32, st.integers(1, 9), elements=st.floats(width=32, allow_nan=False, allow_infinity=False)
)
names = st.builds(
    lambda layer, end: f"{layer}.{end}",
    st.text("abz019._", min_size=1, max_size=8),
    st.sampled_from(["scale", "shift"]),
)
norm_states = st.dictionaries(names, tensors, min_size=1, max_size=5)
tolerances = st.sampled_from([0.0, 1e-4, 1e-3, 1e-2])


def norm_state(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        f"layer{i}.{part}": rng.normal(1, 0.5, 4 + i).astype(np.float32)
        for i in range(3)
        for part in ("scale", "shift")
    }


def golden(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 5, (4, 10)).astype(np.float32)


def make(payload: bytes = b"payload", **changes: Any) -> UpdateManifest:
    fields = {
        "cohort": "north",
        "version": 3,
        "base": BASE,
        "created": 1000,
        "expires": 2000,
        "payload": hashlib.sha256(payload).hexdigest(),
        "payload_bytes": len(payload),
        "format": UPDATE_FORMAT,
    }
    return UpdateManifest(**(fields | changes))


def verify(envelope: bytes, **changes: Any) -> UpdateManifest:
    arguments = {"public_keys": TRUSTED, "cohort": "north", "base": BASE, "running_version": 2, "now": 1500.0}
    return verify_update(envelope, **(arguments | changes))


@settings(max_examples=100, deadline=None)
@given(norm_states, tolerances)
def test_payloads_survive_the_way_within_the_tolerance(
    state: dict[str, np.ndarray], tolerance: float
) -> None:
    logits = golden()
    payload = encode_payload(state, logits, tolerance=tolerance)
    decoded = decode_payload(payload)
    assert decoded.norm_state.keys() == state.keys()
    for key, tensor in state.items():
        got = decoded.norm_state[key]
        assert got.dtype == np.float32
        loss = np.abs(got.astype(np.float64) - tensor).max()
        assert loss <= 0.5 * tolerance * np.abs(tensor.astype(np.float64)).max()
    rounded = round_norm_state(state, tolerance)
    for left in (
        decoded.norm_state,
        decode_payload(encode_payload(rounded, logits, tolerance=tolerance)).norm_state,
    ):
        for key, tensor in rounded.items():
            np.testing.assert_array_equal(left[key], tensor)
    assert decoded.golden_logits.dtype == np.float32
    np.testing.assert_allclose(
        decoded.golden_logits, logits, atol=0.5 * tolerance * float(np.abs(logits).max())
    )
    assert encode_payload(dict(reversed(state.items())), logits, tolerance=tolerance) == payload


def stored(payload: bytes) -> dict[str, Any]:
    return {key: tensor.dtype for key, tensor in safetensors.numpy.load(payload).items()}


def test_float16_is_used_where_it_is_close_enough() -> None:
    state = {
        "ordinary.scale": np.array([0.5, 1.1, -3.3], np.float32),
        "large.scale": np.array([1.0, 70000.0], np.float32),
        "tiny.scale": np.array([1e-6, 3e-7], np.float32),
        "zero.shift": np.zeros(3, np.float32),
        "mixed.shift": np.array([1e-7, 5.0], np.float32),
    }
    dtypes = stored(encode_payload(state, golden()))
    assert dtypes == {
        "ordinary.scale": np.float16,
        "large.scale": np.float32,
        "tiny.scale": np.float32,
        "zero.shift": np.float16,
        "mixed.shift": np.float16,
        "golden.logits": np.float16,
    }
    exact = stored(encode_payload(state, golden(), tolerance=0.0))
    assert exact["ordinary.scale"] == exact["golden.logits"] == np.float32
    assert exact["zero.shift"] == np.float16


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"a.weight": np.zeros(2, np.float32)},
        {"a.scale": np.zeros((2, 2), np.float32)},
        {"a.scale": np.zeros(0, np.float32)},
        {"a.scale": np.zeros(2, np.int64)},
        {"a.scale": np.array([1, np.nan], np.float32)},
        {"a.scale": np.array([1, np.inf], np.float16)},
        {"a.scale": np.array([1, 1e300])},
    ],
)
def test_malformed_norm_states_are_refused(state: dict[str, np.ndarray]) -> None:
    for use in (check_norm_state, round_norm_state, lambda x: encode_payload(x, golden())):
        with pytest.raises(FormatError, match="expected"):
            use(state)


@pytest.mark.parametrize(
    "logits",
    [np.zeros(3, np.float32), np.zeros((0, 3), np.float32), np.full((2, 3), np.nan), np.zeros((2, 3), int)],
)
def test_malformed_golden_logits_are_refused(logits: np.ndarray) -> None:
    with pytest.raises(FormatError, match="golden"):
        encode_payload(norm_state(), logits)


@pytest.mark.parametrize(
    ("content", "metadata"),
    [
        ({"a.scale": np.zeros(2, np.float32)}, {"format": "cema.payload/1"}),
        ({"golden.logits": np.zeros((1, 2), np.float32)}, {"format": "cema.payload/1"}),
        (
            {"a.scale": np.zeros(2), "golden.logits": np.zeros((1, 2), np.float32)},
            {"format": "cema.payload/1"},
        ),
        (
            {"a.scale": np.full(2, np.nan, np.float32), "golden.logits": np.zeros((1, 2), np.float32)},
            {"format": "cema.payload/1"},
        ),
        (
            {"a.scale": np.zeros(2, np.float32), "golden.logits": np.zeros((1, 2), np.float32)},
            {"format": "cema.payload/3"},
        ),
        ({"a.scale": np.zeros(2, np.float32), "golden.logits": np.zeros((1, 2), np.float32)}, None),
    ],
)
def test_malformed_payloads_are_refused(
    content: dict[str, np.ndarray], metadata: dict[str, str] | None
) -> None:
    with pytest.raises(FormatError, match="expected"):
        decode_payload(safetensors.numpy.save(content, metadata=metadata))


@settings(max_examples=30, deadline=None)
@given(st.integers(3, 20), st.integers(1, 10), st.integers(0, 99))
def test_the_environment_travels_unchanged(more: int, size: int, seed: int) -> None:
    domain = Domain.of(np.random.default_rng(seed).normal(size=(size + more, size)))
    decoded = decode_payload(encode_payload(norm_state(), golden(), domain=domain)).domain
    assert decoded is not None
    np.testing.assert_array_equal(decoded.mean, domain.mean)
    np.testing.assert_array_equal(decoded.covariance, domain.covariance)


@pytest.mark.parametrize(
    "tensors",
    [
        {"environment.mean": np.zeros(2, np.float32)},
        {"environment.covariance": np.eye(2, dtype=np.float32)},
        {"environment.mean": np.zeros(2, np.float32), "environment.covariance": np.eye(3, dtype=np.float32)},
        {
            "environment.mean": np.zeros(2, np.float32),
            "environment.covariance": np.array([[1, 9], [9, 1]], np.float32),
        },
    ],
)
def test_half_an_environment_or_none_at_all_is_refused(tensors: dict[str, np.ndarray]) -> None:
    whole = safetensors.numpy.load(encode_payload(norm_state(), golden()))
    with pytest.raises(FormatError, match="expected"):
        decode_payload(safetensors.numpy.save(whole | tensors, metadata={"format": "cema.payload/1"}))


def test_a_payload_with_null_for_metadata_is_refused() -> None:
    header = b'{"__metadata__":null}'
    with pytest.raises(FormatError):
        decode_payload(len(header).to_bytes(8, "little") + header)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60), st.integers(0, 2000))
def test_garbage_and_truncated_payloads_are_format_errors(garbage: bytes, length: int) -> None:
    whole = encode_payload(norm_state(), golden())
    for data in (garbage, whole[: min(length, len(whole) - 1)], whole[:8] + garbage):
        with pytest.raises(FormatError):
            decode_payload(data)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 255))
def test_a_damaged_payload_is_a_payload_or_a_format_error(position: int, flip: int) -> None:
    damaged = bytearray(encode_payload(norm_state(), golden()))
    damaged[position % len(damaged)] ^= flip
    with contextlib.suppress(FormatError):
        assert isinstance(decode_payload(bytes(damaged)), Payload)


manifests = st.builds(
    UpdateManifest,
    cohort=st.text(max_size=20),
    version=st.integers(1, 2**63 - 1),
    base=st.just(BASE),
    created=st.integers(-(2**63), 2**63 - 1),
    expires=st.integers(1, 2**63 - 1),
    payload=st.text("0123456789abcdef", min_size=64, max_size=64),
    payload_bytes=st.integers(1, 2**63 - 1),
    format=st.just(UPDATE_FORMAT),
)


@settings(max_examples=100, deadline=None)
@given(manifests)
def test_manifests_survive_the_way(manifest: UpdateManifest) -> None:
    envelope = sign_update(manifest, KEY)
    running = manifest.version - 1
    got = verify(envelope, cohort=manifest.cohort, running_version=running, now=manifest.expires - 1)
    assert got == manifest
    assert sign_update(manifest, KEY) == envelope


def test_the_format_is_as_written() -> None:
    envelope = json.loads(sign_update(make(), KEY))
    assert list(envelope) == ["manifest", "signatures"]
    content = base64.b64decode(envelope["manifest"])
    assert content == json.dumps(json.loads(content), sort_keys=True, separators=(",", ":")).encode()
    assert json.loads(content)["format"] == "cema.update/1"
    (signature,) = envelope["signatures"]
    assert signature["key"] == key_id(KEY.public_key())
    KEY.public_key().verify(base64.b64decode(signature["signature"]), b"cema.update/1\0" + content)


def test_flipping_any_bit_of_an_envelope_is_rejected() -> None:
    envelope = sign_update(make(), KEY)
    verify(envelope)
    for position in range(len(envelope)):
        for bit in range(8):
            damaged = bytearray(envelope)
            damaged[position] ^= 1 << bit
            with pytest.raises(UpdateRejected):
                verify(bytes(damaged))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_changing_an_envelope_anyhow_is_rejected(data: st.DataObject) -> None:
    envelope = sign_update(make(), KEY)
    start = data.draw(st.integers(0, len(envelope)))
    end = data.draw(st.integers(start, len(envelope)))
    changed = envelope[:start] + data.draw(st.binary(max_size=8)) + envelope[end:]
    assume(changed != envelope)
    with pytest.raises(UpdateRejected):
        verify(changed)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=100))
def test_garbage_is_not_an_envelope(garbage: bytes) -> None:
    with pytest.raises(UpdateRejected) as caught:
        verify(garbage)
    assert caught.value.reason == "malformed"


def test_flipping_any_byte_of_a_payload_is_rejected() -> None:
    payload = encode_payload(norm_state(), golden())
    manifest = make(payload)
    assert verify_payload(manifest, payload).norm_state.keys() == norm_state().keys()
    for position in range(len(payload)):
        damaged = bytearray(payload)
        damaged[position] ^= 1 + position % 255
        with pytest.raises(UpdateRejected) as caught:
            verify_payload(manifest, bytes(damaged))
        assert caught.value.reason == "payload_mismatch"
    for other in (b"", payload[:-1], payload + b"\0"):
        with pytest.raises(UpdateRejected, match="bytes"):
            verify_payload(manifest, other)


def test_a_payload_that_is_right_but_none_is_malformed() -> None:
    with pytest.raises(UpdateRejected) as caught:
        verify_payload(make(b"not safetensors"), b"not safetensors")
    assert caught.value.reason == "malformed"


@pytest.mark.parametrize(
    ("reason", "changes"),
    [
        ("wrong_cohort", {"cohort": "south"}),
        ("wrong_base", {"base": "cd" * 32}),
        ("expired", {"now": 2000.0}),
        ("expired", {"now": 1e12}),
        ("old", {"running_version": 3}),
        ("old", {"running_version": 4}),
        ("unknown_key", {"public_keys": {}}),
        ("unknown_key", {"public_keys": {key_id(OTHER_KEY.public_key()): OTHER_KEY.public_key()}}),
        ("bad_signature", {"public_keys": {key_id(KEY.public_key()): OTHER_KEY.public_key()}}),
    ],
)
def test_an_update_for_somebody_else_is_rejected(reason: str, changes: dict[str, Any]) -> None:
    with pytest.raises(UpdateRejected) as caught:
        verify(sign_update(make(), KEY), **changes)
    assert caught.value.reason == reason


def seal(content: bytes, *signatures: tuple[str, bytes]) -> bytes:
    """Write an envelope by hand."""
    entries = [{"key": key, "signature": base64.b64encode(value).decode()} for key, value in signatures]
    envelope = {"manifest": base64.b64encode(content).decode(), "signatures": entries}
    return json.dumps(envelope, separators=(",", ":")).encode()


def signed_by(key: Ed25519PrivateKey, content: bytes) -> tuple[str, bytes]:
    return key_id(key.public_key()), key.sign(b"cema.update/1\0" + content)


def content_of(manifest: UpdateManifest) -> bytes:
    return base64.b64decode(json.loads(sign_update(manifest, KEY))["manifest"])


def test_unsigned_updates_are_rejected() -> None:
    content = content_of(make())
    without = json.dumps({"manifest": base64.b64encode(content).decode()}).encode()
    for envelope in (seal(content), without):
        with pytest.raises(UpdateRejected) as caught:
            verify(envelope)
        assert caught.value.reason == "unsigned"


def test_one_trusted_signature_is_enough_and_none_of_them_may_be_wrong() -> None:
    content = content_of(make())
    ours, theirs = signed_by(KEY, content), signed_by(OTHER_KEY, content)
    both = TRUSTED | {key_id(OTHER_KEY.public_key()): OTHER_KEY.public_key()}
    assert verify(seal(content, theirs, ours)) == make()
    assert verify(seal(content, theirs, ours), public_keys=both) == make()
    with pytest.raises(UpdateRejected) as caught:
        verify(seal(content, ours, (theirs[0], bytes(64))), public_keys=both)
    assert caught.value.reason == "bad_signature"


@given(st.lists(st.integers(0, 5), min_size=1, max_size=4, unique=True), st.sets(st.integers(0, 5)))
def test_an_update_with_several_signatures_serves_whoever_trusts_one_of_them(
    signing: list[int], trusting: set[int]
) -> None:
    keys = [Ed25519PrivateKey.from_private_bytes(bytes([n]) * 32) for n in range(6)]
    envelope = sign_update(make(), *(keys[n] for n in signing))
    trusted = {key_id(keys[n].public_key()): keys[n].public_key() for n in trusting}
    if trusting & set(signing):
        assert verify(envelope, public_keys=trusted) == make()
    else:
        with pytest.raises(UpdateRejected, match="unknown_key"):
            verify(envelope, public_keys=trusted)


def test_an_update_that_nobody_signs_is_not_made() -> None:
    with pytest.raises(ValueError, match="at least one signer"):
        sign_update(make())


def test_a_signature_without_the_context_does_not_count() -> None:
    content = content_of(make())
    with pytest.raises(UpdateRejected) as caught:
        verify(seal(content, (key_id(KEY.public_key()), KEY.sign(content))))
    assert caught.value.reason == "bad_signature"


@pytest.mark.parametrize(
    "change",
    [
        {"format": "cema.update/2"},
        {"version": 0},
        {"version": "3"},
        {"base": "../model"},
        {"payload": "AB" * 32},
        {"payload_bytes": 0},
        {"unknown": 1},
    ],
)
def test_a_signed_manifest_must_still_follow_the_format(change: dict[str, Any]) -> None:
    content = canonical(json.loads(content_of(make())) | change)
    with pytest.raises(UpdateRejected, match=r"does not follow cema\.update/1") as caught:
        verify(seal(content, signed_by(KEY, content)))
    assert caught.value.reason == "malformed"


def canonical(fields: dict[str, Any]) -> bytes:
    return json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()


@pytest.mark.parametrize("name", ["format", "cohort", "version", "expires"])
def test_a_signed_manifest_must_have_every_member(name: str) -> None:
    fields = json.loads(content_of(make()))
    del fields[name]
    content = canonical(fields)
    with pytest.raises(UpdateRejected, match=rf"does not follow cema\.update/1.*`{name}`") as caught:
        verify(seal(content, signed_by(KEY, content)))
    assert caught.value.reason == "malformed"


def test_a_manifest_of_another_format_names_both() -> None:
    content = canonical(json.loads(content_of(make())) | {"format": "cema.update/2"})
    with pytest.raises(UpdateRejected, match=r"'cema\.update/1', got 'cema\.update/2'"):
        verify(seal(content, signed_by(KEY, content)))


@pytest.mark.parametrize(
    "respell",
    [
        lambda text: text.replace(b'"cohort":"north"', b'"cohort":"south","cohort":"north"'),
        lambda text: text.replace(b'"version":3', b'"version":3,"version":3'),
        lambda text: text.replace(b'"version":3', b'"version":2,"version":3'),
        lambda text: text.replace(b":", b": "),
        lambda text: b" " + text,
        lambda text: text + b"\n",
        lambda text: text.replace(b"north", b"n\\u006frth"),
        lambda text: json.dumps(dict(reversed(json.loads(text).items())), separators=(",", ":")).encode(),
    ],
)
def test_a_signed_manifest_in_another_spelling_is_malformed(respell: Callable[[bytes], bytes]) -> None:
    good = content_of(make())
    content = respell(good)
    assert content != good
    assert json.loads(content) == json.loads(good)
    with pytest.raises(UpdateRejected, match="canonical") as caught:
        verify(seal(content, signed_by(KEY, content)))
    assert caught.value.reason == "malformed"


def test_the_same_content_in_another_spelling_is_rejected() -> None:
    envelope = sign_update(make(), KEY)
    for other in (
        json.dumps(json.loads(envelope)).encode(),
        envelope + b"\n",
        envelope.replace(b"manifest", b"manifes\\u0074"),
    ):
        with pytest.raises(UpdateRejected) as caught:
            verify(other)
        assert caught.value.reason == "malformed"
    with pytest.raises(UpdateRejected, match="at most"):
        verify(b" " * 70_000)
    with pytest.raises(UpdateRejected):
        verify(b"[" * 60_000)
