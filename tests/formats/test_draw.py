"""The header that names the samples that were drawn at random."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cema.errors import FormatError
from cema.formats.draw import MAX_BYTES, SMALLEST_SHARE, Draw, decode_draws, encode_draws

DRAWS = st.dictionaries(
    st.integers(0, 60),
    st.builds(Draw, st.sampled_from([SMALLEST_SHARE, 0.005, 0.01, 1.0]) | st.floats(1e-3, 1), st.booleans()),
    max_size=40,
)


@given(DRAWS)
def test_what_is_written_is_read(draws: dict[int, Draw]) -> None:
    value = encode_draws(draws)
    assert value.isascii()
    assert value.isprintable()
    assert decode_draws(value, samples=61) == draws


@given(st.text(max_size=200) | st.binary(max_size=200).map(lambda data: data.decode("latin-1")))
def test_any_text_is_read_or_refused(value: str) -> None:
    try:
        draws = decode_draws(value, samples=8)
    except FormatError:
        return
    assert decode_draws(encode_draws(draws), samples=8) == draws


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["share", "selected", "only", "more"]) | st.text(max_size=3), inner, max_size=4
        )
    ),
    max_leaves=12,
)


@given(JSON)
def test_any_json_is_read_or_refused(value: object) -> None:
    try:
        draws = decode_draws(json.dumps(value), samples=8)
    except FormatError:
        return
    assert all(0 <= at < 8 and SMALLEST_SHARE <= draw.share <= 1 for at, draw in draws.items())


@pytest.mark.parametrize(
    "value",
    [
        "",
        "{}",
        '[{"selected":[0]}]',
        '[{"share":0}]',
        '[{"share":1.5}]',
        '[{"share":NaN}]',
        '[{"share":1e-7}]',
        '[{"share":0.5,"only":[4]}]',
        '[{"share":0.5,"only":[-1]}]',
        '[{"share":0.5,"only":[0.5]}]',
        '[{"share":0.5,"only":[1,1]}]',
        '[{"share":0.5,"only":[1],"selected":[1]}]',
        '[{"share":0.5,"only":[1]},{"share":0.4,"only":[1]}]',
        " " * MAX_BYTES + "[]",
        "[" * 3000,
        "\u00e9",
    ],
)
def test_what_makes_no_sense_is_refused(value: str) -> None:
    with pytest.raises(FormatError, match="CEMA-Drawn"):
        decode_draws(value, samples=4)


def test_further_members_are_ignored_and_nothing_drawn_is_said_in_two_ways() -> None:
    assert decode_draws('[{"share":1,"only":[2],"why":{"a":[1]}}]', samples=3) == {2: Draw(1.0, False)}
    assert decode_draws("[]", samples=0) == decode_draws(encode_draws({}), samples=0) == {}


def test_a_request_of_the_default_limit_fits_however_it_was_drawn() -> None:
    assert len(encode_draws({i: Draw(0.01, i % 2 == 0) for i in range(256)})) <= MAX_BYTES
