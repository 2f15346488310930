"""Range checks: one wording, and the exception that was asked for."""

from __future__ import annotations

import math

import msgspec
import pytest

from cema._util.checks import is_sha256, require, require_at_least
from cema._util.names import did_you_mean, missing_and_unknown
from cema._util.units import human_bytes
from cema.errors import ConfigError


class Section(msgspec.Struct):
    count: int = 2
    seconds: float = 0.5


def test_what_is_too_small_is_named() -> None:
    require_at_least(Section(), 0.5, "count", "seconds", finite=True)
    with pytest.raises(ValueError, match=r"^count: expected at least 3, got 2; correct the setting$"):
        require_at_least(Section(), 3, "count")
    with pytest.raises(ValueError, match="seconds: expected at least 0, got nan"):
        require_at_least(Section(seconds=math.nan), 0, "seconds")


def test_infinity_is_refused_where_it_means_nothing() -> None:
    require_at_least(Section(seconds=math.inf), 0, "seconds")
    with pytest.raises(ValueError, match="seconds: expected a finite number of at least 0, got inf"):
        require_at_least(Section(seconds=math.inf), 0, "seconds", finite=True)


def test_the_exception_is_the_callers() -> None:
    with pytest.raises(ConfigError, match=r"^data: expected a path, got 3; correct the setting$"):
        require(False, "data", "a path", 3, error=ConfigError)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("a1" * 32, True), ("A1" * 32, False), ("a1" * 31, False), ("a1" * 32 + "\n", False), ("", False)],
)
def test_a_digest_is_64_lowercase_hexadecimal_digits(text: str, expected: bool) -> None:
    assert is_sha256(text) is expected


def test_what_differs_between_two_sets_of_names() -> None:
    assert missing_and_unknown("ab", "ba") == ""
    assert missing_and_unknown("abcde", "x") == (
        "missing ['a', 'b', 'c'] (5 in all), unknown ['x'] (1 in all)"
    )
    assert did_you_mean("prot", ["port", "host"], quote="`") == "; did you mean `port`?"


def test_bytes_are_shown_in_decimal_units() -> None:
    assert [human_bytes(n) for n in (0, 1500, 2.5e6, 3.25e9)] == ["0.0 kB", "1.5 kB", "2.50 MB", "3.25 GB"]
