"""Ranges of the day in which nothing is sent."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cema.edge.quiet_hours import QuietHours

MINUTES = st.integers(0, 24 * 60 - 1)


def seconds(hours: int, minutes: int = 0, rest: float = 0.0) -> float:
    return datetime(2027, 3, 4, hours, minutes, tzinfo=UTC).timestamp() + rest


def test_a_range_has_its_first_minute_and_not_its_last() -> None:
    quiet = QuietHours(["08:00-18:00"], "utc")
    assert quiet.left(seconds(7, 59, 59.5)) == 0
    assert quiet.left(seconds(8)) == 10 * 3600
    assert quiet.left(seconds(17, 59, 59.5)) == 0.5
    assert quiet.left(seconds(18)) == 0


def test_ranges_may_pass_midnight_and_touch() -> None:
    quiet = QuietHours(["22:00-24:00", "00:00-06:30", "06:00-07:00"], "utc")
    assert quiet.left(seconds(22)) == 9 * 3600
    assert quiet.left(seconds(7)) == 0
    assert QuietHours(["22:00-06:00"], "utc").left(seconds(23)) == 7 * 3600


def test_none_is_never_quiet() -> None:
    assert QuietHours([]).left(seconds(3)) == 0


def test_local_time_is_the_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "EST5")
    time.tzset()
    try:
        assert QuietHours(["08:00-18:00"]).left(seconds(14)) == 9 * 3600
        assert QuietHours(["08:00-18:00"]).left(seconds(12)) == 0
    finally:
        monkeypatch.undo()
        time.tzset()


@given(MINUTES, MINUTES, st.floats(0, 4e9))
def test_it_is_quiet_until_the_end_and_no_longer(start: int, end: int, now: float) -> None:
    if start == end:
        return
    text = f"{start // 60:02}:{start % 60:02}-{end // 60:02}:{end % 60:02}"
    quiet = QuietHours([text], "utc")
    moment = datetime.fromtimestamp(now, timezone(timedelta()))
    minute = 60 * moment.hour + moment.minute
    inside = start <= minute < end if start < end else minute >= start or minute < end
    left = quiet.left(now)
    assert (left > 0) == inside
    if inside:
        assert quiet.left(now + left / 2) > 0
        assert quiet.left(now + left + 0.001) == 0


@pytest.mark.parametrize(
    "ranges",
    [
        ["8-18"],
        ["08:00"],
        ["08:00-08:00"],
        ["25:00-26:00"],
        ["08:60-09:00"],
        ["24:00-08:00"],
        ["08:00-24:01"],
    ],
)
def test_what_is_no_range_is_refused(ranges: list[str]) -> None:
    with pytest.raises(ValueError, match="expected a range of the day"):
        QuietHours(ranges)


@pytest.mark.parametrize("ranges", [["00:00-24:00"], ["06:00-18:00", "18:00-06:00"]])
def test_a_day_without_any_time_left_is_refused(ranges: list[str]) -> None:
    with pytest.raises(ValueError, match="expected some time of the day"):
        QuietHours(ranges)
