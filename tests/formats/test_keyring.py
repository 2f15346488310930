"""Keys documents: what changes which keys a device trusts, and what must not."""

from __future__ import annotations

import base64
import json
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from cema.errors import FormatError, KeysRejected, UpdateRejected
from cema.formats.keyring import (
    KEYS_FORMAT,
    MOST_DOCUMENTS,
    Keyring,
    KeysDocument,
    decode_documents,
    encode_documents,
    sign_keys,
)
from cema.formats.keys import key_id
from cema.formats.update import UPDATE_FORMAT, UpdateManifest, sign_update, verify_update

KEYS = [Ed25519PrivateKey.from_private_bytes(bytes([n]) * 32) for n in range(6)]
A, B, C, D, E, F = KEYS
NOW = 1500.0


def raw(*keys: Ed25519PrivateKey) -> tuple[str, ...]:
    return tuple(key.public_key().public_bytes_raw().hex() for key in keys)


def ids(*keys: Ed25519PrivateKey) -> set[str]:
    return {key_id(key.public_key()) for key in keys}


def device(*keys: Ed25519PrivateKey) -> Keyring:
    return Keyring.of("north", {key_id(key.public_key()): key.public_key() for key in keys})


def document(serial: int, *keys: Ed25519PrivateKey, **changes: Any) -> KeysDocument:
    fields: dict[str, Any] = {
        "cohort": "north", "serial": serial, "keys": raw(*keys), "revoked": (), "created": 1000,
        "expires": 2000, "format": KEYS_FORMAT,
    }  # fmt: skip
    return KeysDocument(**(fields | changes))


def refused(keyring: Keyring, envelope: bytes, now: float | None = NOW) -> str:
    with pytest.raises(KeysRejected) as caught:
        keyring.accept(envelope, now=now)
    return caught.value.reason


def test_a_rotation_from_one_key_to_the_next() -> None:
    old = device(A)
    both = old.accept(sign_keys(document(1, A, B), A), now=NOW)
    assert (both.trusted.keys(), both.serial) == (ids(A, B), 1)
    retired = both.accept(sign_keys(document(2, B), A, B), now=NOW)
    assert retired.trusted.keys() == ids(B)
    assert retired.known.keys() == ids(A, B)  # what A has signed and the device runs counts still
    revoked = retired.accept(sign_keys(document(3, B, revoked=raw(A)), B), now=NOW)
    assert revoked.trusted.keys() == revoked.known.keys() == ids(B)
    assert revoked.revoked_ids == ids(A)
    assert old.trusted.keys() == ids(A)  # a keyring never changes


@pytest.mark.parametrize(
    ("made", "signers", "reason"),
    [
        (document(5, B), (B,), "unknown_key"),
        (document(5, B), (E,), "revoked_key"),  # E was revoked
        (document(5, B, C, revoked=raw(E, D)), (D,), "revoked_key"),  # a key revokes itself alone
        (document(5, A, E), (A,), "revoked_key"),  # a revoked key never comes back
        (document(4, A, B), (A,), "old"),
        (document(3, A, B), (A,), "old"),
        (document(5, A, B, expires=1500), (A,), "expired"),
        (document(5, A, B, cohort="south"), (A,), "wrong_cohort"),
    ],
)
def test_what_changes_nothing(
    made: KeysDocument, signers: tuple[Ed25519PrivateKey, ...], reason: str
) -> None:
    keyring = device(A, E).accept(sign_keys(document(4, A, D, revoked=raw(E)), A), now=NOW)
    assert refused(keyring, sign_keys(made, *signers)) == reason


def test_another_signature_does_not_cure_a_wrong_one() -> None:
    envelope = json.loads(sign_keys(document(1, B), A, B))
    envelope["signatures"][1]["signature"] = envelope["signatures"][0]["signature"]
    spoilt = json.dumps(envelope, separators=(",", ":")).encode()
    assert refused(device(A, B), spoilt) == "bad_signature"
    assert device(A).accept(spoilt, now=NOW).serial == 1  # one that it does not know is ignored


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"keys": ()}, "1 to 16 keys"),
        ({"keys": raw(*(Ed25519PrivateKey.generate() for _ in range(17)))}, "1 to 16 keys"),
        ({"keys": raw(A, A)}, "twice"),
        ({"revoked": raw(A)}, "both trusted and revoked"),
        ({"keys": ("AB" * 32,)}, "lowercase"),
        ({"revoked": ("ab",)}, "lowercase"),
        ({"revoked": tuple(f"{n:064x}" for n in range(257))}, "at most 256"),
        ({"serial": 0}, "serial"),
        ({"serial": 2**63}, "serial"),
        ({"format": "cema.keys/2"}, "cema.keys/1"),
    ],
)
def test_documents_out_of_range_are_neither_made_nor_read(changes: dict[str, Any], told: str) -> None:
    fields = msgspec.to_builtins(document(1, A)) | changes
    with pytest.raises(ValueError, match=told):
        KeysDocument(**fields)
    content = json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()
    with pytest.raises(KeysRejected, match=told):
        device(A).accept(sealed(content, A), now=NOW)


def sealed(content: bytes, key: Ed25519PrivateKey, context: bytes = b"cema.keys/1\0") -> bytes:
    signature = base64.b64encode(key.sign(context + content)).decode()
    (name,) = ids(key)
    envelope = {
        "manifest": base64.b64encode(content).decode(), "signatures": [{"key": name, "signature": signature}]
    }  # fmt: skip
    return json.dumps(envelope, separators=(",", ":")).encode()


def test_a_document_has_one_form_only_and_is_no_update() -> None:
    envelope = sign_keys(document(1, A), A)
    content = base64.b64decode(json.loads(envelope)["manifest"])
    assert sealed(content, A) == envelope
    twice = content.replace(b'"serial":1', b'"serial":1,"serial":1')
    more = content.replace(b'"serial":1', b'"serial":1,"threshold":2')
    for other in (twice, more, content.replace(b",", b", "), content + b" ", b"{}", b"[]", b"\xff"):
        assert refused(device(A), sealed(other, A)) == "malformed"
    assert refused(device(A), sealed(content, A, b"cema.update/1\0")) == "bad_signature"
    update = UpdateManifest(
        cohort="north", version=1, base="0" * 64, created=1, expires=2000, payload="1" * 64, payload_bytes=1,
        format=UPDATE_FORMAT,
    )  # fmt: skip
    assert refused(device(A), sign_update(update, A)) == "bad_signature"
    with pytest.raises(UpdateRejected, match="bad_signature"):
        verify_update(
            envelope, public_keys=device(A).trusted, cohort="north", base="0" * 64, running_version=0, now=NOW
        )


ENVELOPE = sign_keys(document(1, A, B, revoked=raw(C)), A)


@given(st.integers(0, len(ENVELOPE) - 1), st.integers(1, 255))
def test_any_byte_that_is_changed_is_refused(position: int, change: int) -> None:
    damaged = bytearray(ENVELOPE)
    damaged[position] ^= change
    with pytest.raises(KeysRejected):
        device(A).accept(bytes(damaged), now=NOW)


@given(st.integers(0, len(ENVELOPE) - 1), st.binary(max_size=8))
def test_what_is_cut_off_or_goes_on_is_refused(length: int, more: bytes) -> None:
    for damaged in (ENVELOPE[:length], ENVELOPE[:length] + more, ENVELOPE + b"x" + more):
        if damaged != ENVELOPE:
            with pytest.raises(KeysRejected):
                device(A).accept(damaged, now=NOW)


def test_a_device_that_was_away_follows_all_documents_and_only_the_last_may_not_be_expired() -> None:
    chain = [
        sign_keys(document(1, A, B, expires=1100), A),
        sign_keys(document(2, B, C, expires=1200), B),
        sign_keys(document(7, C, revoked=raw(A)), C),
    ]
    keyring, rejection = device(A).accept_all(chain, now=NOW)
    assert (keyring.serial, rejection) == (7, None)
    assert keyring.trusted.keys() == ids(C)
    # What is known, and lists that are shorter, change nothing and are no fault.
    for known in (chain, chain[:2], chain[2:], []):
        assert keyring.accept_all(known, now=NOW) == (keyring, None)
    expired, rejection = device(A).accept_all(chain[:2], now=NOW)
    assert (expired.serial, rejection and rejection.reason) == (0, "expired")
    # Nor does one that has expired come in between others: what was withheld too long is withheld for good.
    both, late = device(A).accept(chain[0], now=None), chain[1]
    for offered in ([late], [late, chain[0]], [chain[0], late], [late, b"{}"]):
        got, rejection = both.accept_all(offered, now=NOW)
        assert (got, rejection and rejection.reason) == (both, "expired")
    # Remembered ones do not expire.
    assert device(A).accept_all(chain[:2], now=None)[0].serial == 2
    # One that cannot be verified is passed over: a device with a newer bundle does not know A.
    keyring, rejection = device(B).accept_all(chain, now=NOW)
    assert (keyring.serial, rejection) == (7, None)


def test_a_list_of_documents_is_read_as_it_was_written() -> None:
    chain = [sign_keys(document(n, A), A) for n in (1, 2)]
    body = encode_documents(chain)
    assert decode_documents(body) == tuple(chain)
    assert [
        json.dumps(each, separators=(",", ":")).encode() for each in json.loads(body)["documents"]
    ] == chain
    assert decode_documents(b'{"documents":[],"more":1}') == ()
    for wrong in (
        b"",
        b"[]",
        b"{}",
        b'{"documents":{}}',
        b"\xff",
        b'{"documents":[1,}',
        b"<html>",
        b"[" * 10**5,
    ):
        with pytest.raises(FormatError):
            decode_documents(wrong)
    with pytest.raises(FormatError, match="at most 64"):
        decode_documents(encode_documents(chain * 33))


def test_a_keyring_takes_a_bounded_number_of_documents() -> None:
    keyring = device(A)
    for serial in range(1, MOST_DOCUMENTS + 1):
        keyring = keyring.accept(sign_keys(document(serial, A), A), now=NOW)
    assert refused(keyring, sign_keys(document(MOST_DOCUMENTS + 1, A), A)) == "malformed"


@given(st.lists(st.binary(max_size=200) | st.sampled_from([ENVELOPE]), max_size=5))
def test_garbage_never_does_anything_but_be_refused(offered: list[bytes]) -> None:
    keyring, _ = device(A).accept_all(offered, now=NOW)
    assert keyring.serial == (1 if ENVELOPE in offered else 0)


class Rotations(RuleBasedStateMachine):
    """An operator who exchanges keys, and devices that see some of the documents, in any order, again and again."""

    def __init__(self) -> None:
        super().__init__()
        self.operator = device(A, B)
        self.away = self.often = device(A, B)
        self.documents: list[bytes] = []

    @rule(
        trusted=st.sets(st.integers(0, 5), min_size=1),
        revoked=st.sets(st.integers(0, 5)),
        signing=st.sets(st.integers(0, 5), min_size=1),
        step=st.integers(1, 3),
    )
    def change(self, trusted: set[int], revoked: set[int], signing: set[int], step: int) -> None:
        """Make a document, right or wrong; keep those that are right."""
        named = sorted(trusted - revoked)
        if not named:
            return
        without = raw(*(KEYS[n] for n in sorted(revoked)))
        made = document(self.operator.serial + step, *(KEYS[n] for n in named), revoked=without)
        may_sign = self.operator.trusted.keys() & ids(*(KEYS[n] for n in signing - revoked))
        again = self.operator.revoked & set(made.keys)
        full = len(self.documents) == MOST_DOCUMENTS
        try:
            self.operator = self.operator.accept(
                sign_keys(made, *(KEYS[n] for n in sorted(signing))), now=NOW
            )
        except KeysRejected:
            assert not may_sign or again or full
            return
        assert may_sign
        assert not again
        self.documents.append(self.operator.documents[-1])

    @rule(order=st.randoms(use_true_random=False), count=st.integers(0, 8))
    def offer_some(self, order: Any, count: int) -> None:
        """Offer one device some documents in any order, old ones too."""
        before = self.often
        offered = order.sample(self.documents, min(count, len(self.documents)))
        self.often, _ = before.accept_all(offered, now=NOW)
        assert self.often.serial >= before.serial
        assert self.often.revoked >= before.revoked

    @rule()
    def offer_all(self) -> None:
        """Whoever sees all documents in their order trusts what the operator trusts."""
        self.away, rejection = self.away.accept_all(self.documents, now=NOW)
        assert rejection is None
        assert self.away == self.operator

    @invariant()
    def nothing_revoked_is_trusted(self) -> None:
        for keyring in (self.operator, self.away, self.often):
            assert keyring.trusted
            assert not keyring.known.keys() & keyring.revoked_ids
            assert keyring.trusted.keys() <= keyring.known.keys()

    @invariant()
    def what_is_remembered_gives_the_same_again(self) -> None:
        for keyring in (self.away, self.often):
            remembered = decode_documents(encode_documents(keyring.documents))
            assert device(A, B).accept_all(remembered, now=None) == (keyring, None)


TestRotations = Rotations.TestCase
