"""Payloads with weights and biases apart from statistics, and that nothing changed in those without."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from recorded_folders import RECORDED

from cema.errors import FormatError
from cema.formats.payload import Payload, decode_payload, encode_payload, round_norm_state
from cema.ondevice.drift import Domain

STATE = {
    "a.scale": np.array([1.5, 1e5, -2.0], np.float32),
    "a.shift": np.array([0.1, 0.2, 0.3], np.float32),
}
GOLDEN = np.array([[2.0, -1.0], [0.5, 3.0]], np.float32)
UNFOLDED = {"format": "cema.payload/2"}

finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
vectors = hnp.arrays(np.float32, st.integers(1, 9), elements=finite)
keys = st.builds(
    "{}.{}".format, st.text("abz019._", min_size=1, max_size=8), st.sampled_from(["scale", "shift"])
)
norm_states = st.dictionaries(keys, vectors, min_size=1, max_size=5)
tolerances = st.sampled_from([0.0, 1e-4, 1e-3, 1e-2])


@st.composite
def all_statistics(draw: st.DrawFn) -> np.ndarray:
    size = draw(st.integers(1, 9))
    mean = draw(hnp.arrays(np.float32, size, elements=finite))
    variance = draw(hnp.arrays(np.float32, size, elements=st.floats(0, 2.0**100, width=32)))
    return np.stack([mean, variance])


def metadata(payload: bytes) -> dict[str, str]:
    header = json.loads(payload[8 : 8 + int.from_bytes(payload[:8], "little")])
    return dict(header["__metadata__"])


def stored(statistics: Any, tolerance: float = 1e-3) -> tuple[Any, Any]:
    payload = encode_payload(
        STATE, GOLDEN, unfolded=True, statistics=np.array(statistics), tolerance=tolerance
    )
    tensors = safetensors.numpy.load(payload)
    return tensors["statistics.mean"].dtype, tensors["statistics.variance"].dtype


@settings(max_examples=150, deadline=None)
@given(norm_states, st.none() | all_statistics(), tolerances, st.booleans())
def test_unfolded_payloads_survive_the_way_within_the_tolerance(
    state: dict[str, np.ndarray], statistics: np.ndarray | None, tolerance: float, somewhere: bool
) -> None:
    domain = Domain.of(np.random.default_rng(0).normal(size=(9, 3))) if somewhere else None
    arguments: dict[str, Any] = {"domain": domain, "tolerance": tolerance}
    payload = encode_payload(state, GOLDEN, unfolded=True, statistics=statistics, **arguments)
    assert metadata(payload) == UNFOLDED
    decoded = decode_payload(payload)
    assert decoded.unfolded
    assert (decoded.domain is not None) == somewhere
    rounded = round_norm_state(state, tolerance)
    assert decoded.norm_state.keys() == state.keys()
    assert all(np.array_equal(decoded.norm_state[key], value) for key, value in rounded.items())
    if statistics is None:
        assert decoded.statistics is None
        # All else is as in a folded one, to the byte.
        folded = encode_payload(state, GOLDEN, **arguments)
        assert payload == folded.replace(b"cema.payload/1", b"cema.payload/2")
        return
    assert decoded.statistics is not None
    assert decoded.statistics.dtype == np.float32
    mean, variance = statistics.astype(np.float64)
    loss = np.abs(decoded.statistics.astype(np.float64) - statistics)
    assert (loss[1] <= 0.5 * tolerance * variance).all()
    assert (loss[0] <= 0.5 * tolerance * np.maximum(np.abs(mean), np.sqrt(variance))).all()
    again = encode_payload(
        decoded.norm_state, decoded.golden_logits, unfolded=True, statistics=decoded.statistics, **arguments
    )
    assert decode_payload(again).statistics is not None
    np.testing.assert_array_equal(decode_payload(again).statistics, decoded.statistics)


@pytest.mark.parametrize(
    ("statistics", "short"),
    [
        ([[0.3, -7.1], [1.7, 0.02]], (True, True)),
        ([[0.3, -7.1], [1.7, 1e-6]], (True, False)),  # beside 1.7 it is nothing, in its own channel it is all
        ([[0.3, 7e4], [1.7, 1.7]], (False, True)),
        ([[0.3, 0.2], [7e4, 1.7]], (True, False)),
        ([[0.3, 1e-7], [1.7, 1.7]], (True, True)),  # of no account with a deviation of 1.3
        ([[0.3, 1e-7], [1.7, 0.0]], (False, True)),
        ([[0.0, 0.0], [0.0, 0.0]], (True, True)),
    ],
)
def test_statistics_are_short_where_no_channel_loses(
    statistics: list[list[float]], short: tuple[bool, bool]
) -> None:
    got = tuple(dtype == np.float16 for dtype in stored(statistics))
    assert got == short
    assert stored([[0.3], [1.7]], tolerance=0.0) == (np.float32, np.float32)


@pytest.mark.parametrize(
    "statistics",
    [
        np.zeros((2, 0)),
        np.zeros((3, 2)),
        np.zeros(2),
        np.zeros((2, 2), int),
        np.array([[0.0, np.nan], [1, 1]]),
        np.array([[0.0, 0], [1, np.inf]]),
        np.array([[0.0, 1e300], [1, 1]]),
        np.array([[0.0, 0], [1, -1e-9]]),
    ],
)
def test_malformed_statistics_are_refused(statistics: np.ndarray) -> None:
    with pytest.raises(FormatError, match="statistics"):
        encode_payload(STATE, GOLDEN, unfolded=True, statistics=statistics)


def test_a_folded_payload_has_no_statistics_beside_it() -> None:
    with pytest.raises(FormatError, match="leave them out"):
        encode_payload(STATE, GOLDEN, statistics=np.ones((2, 3)))
    tensors = safetensors.numpy.load(encode_payload(STATE, GOLDEN, unfolded=True, statistics=np.ones((2, 3))))
    assert decode_payload(safetensors.numpy.save(tensors, UNFOLDED)).statistics is not None
    with pytest.raises(FormatError, match=r"statistics\.mean"):
        decode_payload(safetensors.numpy.save(tensors, {"format": "cema.payload/1"}))


ONE, TWO = np.ones(1, np.float32), np.ones(2, np.float32)


@pytest.mark.parametrize(
    "tensors",
    [
        {"statistics.mean": ONE},
        {"statistics.variance": ONE},
        {"statistics.mean": ONE, "statistics.variance": TWO},
        {"statistics.mean": np.ones((1, 2), np.float32), "statistics.variance": np.ones((1, 2), np.float32)},
        {"statistics.mean": ONE[:0], "statistics.variance": ONE[:0]},
        {"statistics.mean": ONE, "statistics.variance": -ONE},
        {"statistics.mean": ONE * np.float32("nan"), "statistics.variance": ONE},
        {"statistics.mean": ONE, "statistics.variance": ONE.astype(np.float16) * np.float16("inf")},
        {"statistics.mean": ONE.astype(np.float64), "statistics.variance": ONE},
        {"statistics.mean": ONE, "statistics.variance": ONE, "statistics.scale": TWO, "statistics.more": ONE},
    ],
)
def test_payloads_that_break_the_format_are_refused(tensors: dict[str, np.ndarray]) -> None:
    whole = safetensors.numpy.load(encode_payload(STATE, GOLDEN, unfolded=True))
    assert decode_payload(safetensors.numpy.save(whole, UNFOLDED)).unfolded
    with pytest.raises(FormatError, match="expected"):
        decode_payload(safetensors.numpy.save(whole | tensors, UNFOLDED))


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 255))
def test_a_damaged_payload_is_a_payload_or_a_format_error(position: int, flip: int) -> None:
    damaged = bytearray(encode_payload(STATE, GOLDEN, unfolded=True, statistics=np.ones((2, 3))))
    damaged[position % len(damaged)] ^= flip
    with contextlib.suppress(FormatError):
        assert isinstance(decode_payload(bytes(damaged)), Payload)


@settings(max_examples=150, deadline=None)
@given(norm_states, st.none() | all_statistics(), st.booleans(), st.data())
def test_of_any_payload_no_part_and_no_damage_does_more_than_a_format_error(
    state: dict[str, np.ndarray], statistics: np.ndarray | None, somewhere: bool, data: st.DataObject
) -> None:
    domain = Domain.of(np.random.default_rng(0).normal(size=(9, 3))) if somewhere else None
    whole = encode_payload(state, GOLDEN, unfolded=True, statistics=statistics, domain=domain)
    for wrong in (whole[: data.draw(st.integers(0, len(whole) - 1))], whole + b"\0"):
        with pytest.raises(FormatError, match=r"\w+ \w+"):
            decode_payload(wrong)
    damaged = bytearray(whole)
    damaged[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        decoded = decode_payload(bytes(damaged))
    except FormatError:
        return
    # The format has no checksum, the update's manifest has: what decodes is at least something to compute with.
    known = [*decoded.norm_state.values(), decoded.golden_logits]
    if decoded.statistics is not None:
        known.append(decoded.statistics)
        assert (decoded.statistics[1] >= 0).all()
    assert all(np.isfinite(values).all() for values in known)


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=20))
def test_other_formats_are_refused_with_a_remedy(name: str) -> None:
    assume(name not in ("cema.payload/1", "cema.payload/2"))
    tensors = safetensors.numpy.load(encode_payload(STATE, GOLDEN))
    with pytest.raises(FormatError, match="upgrade the older side"):
        decode_payload(safetensors.numpy.save(tensors, {"format": name}))


# --- payloads from before


def test_recorded_payloads_are_read_and_made_as_before() -> None:
    """What an earlier version published decodes, and is made again from its content to the very byte."""
    files = sorted((RECORDED / "device").glob("update-*.bin"))
    assert files
    for file in files:
        data = file.read_bytes()
        payload = decode_payload(data)
        assert (payload.unfolded, payload.statistics) == (False, None)
        made = encode_payload(payload.norm_state, payload.golden_logits, domain=payload.domain)
        assert made == data
