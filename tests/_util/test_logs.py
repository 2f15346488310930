"""Messages of one kind are few, whoever causes them."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cema._util.events import Event, report
from cema._util.logs import MOST_KINDS, JsonLines, TextLines, Throttle, start_logging


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def record(message: str, *values: object, level: int = logging.INFO) -> logging.LogRecord:
    return logging.LogRecord("x", level, "", 0, message, values, None)


def test_the_first_of_a_kind_are_written_and_the_rest_are_counted(clock: Clock) -> None:
    throttle = Throttle(burst=3, period=10, clock=clock)
    assert [throttle.filter(record("from %s", i)) for i in range(5)] == [True] * 3 + [False] * 2
    assert throttle.filter(record("to %s", 1))
    assert throttle.filter(record("from %s", 1, level=logging.ERROR))
    clock.now = 10.0
    next_one = record("from %s", 9)
    assert throttle.filter(next_one)
    assert next_one.getMessage() == "from 9 (2 more of this kind were left out)"
    assert throttle.filter(record("from %s", 9))


def test_nothing_is_said_of_messages_that_were_all_written(clock: Clock) -> None:
    throttle = Throttle(burst=3, period=10, clock=clock)
    assert throttle.filter(record("a 100 % load"))
    clock.now = 30.0
    later = record("a 100 % load")
    assert throttle.filter(later)
    assert later.getMessage() == "a 100 % load"


def test_invented_kinds_take_no_memory(clock: Clock) -> None:
    throttle = Throttle(clock=clock)
    for i in range(3 * MOST_KINDS):
        throttle.filter(record(f"kind {i}"))
    assert len(throttle._seen) <= MOST_KINDS


def test_crowds_are_throttled_apart_and_what_has_none_is_not(clock: Clock) -> None:
    throttle = Throttle(burst=2, period=10, clock=clock)

    def passed(crowd: str | None, level: int = logging.INFO) -> int:
        records = [record("from %s", i, level=level) for i in range(5)]
        for one in records:
            one.crowd = crowd
        return sum(throttle.filter(one) for one in records)

    assert (passed("a"), passed("b"), passed(None), passed("a", logging.DEBUG)) == (2, 2, 5, 5)


TEST = Event(
    "test.happened", logging.WARNING, "%(count)d of %(what)s", "", {"count": "", "what": "", "hidden": ""}
)


@pytest.fixture
def restored_logging() -> Iterator[None]:
    root, own = logging.getLogger(), logging.getLogger("cema")
    before = root.handlers[:], root.level, own.level
    yield
    root.handlers[:], root.level, own.level = before


def test_an_event_is_one_line_of_json(restored_logging: None, capsys: pytest.CaptureFixture[str]) -> None:
    start_logging("server", form="json")
    log = logging.getLogger("cema.test")
    begin = datetime.now(UTC)
    try:
        raise OSError("no\nroom")
    except OSError as error:
        report(log, TEST, exc_info=error, count=3, what="a % \n \u2028 b", hidden=float("inf"))
    logging.getLogger("another").warning("of %s", "another package")
    first, second = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    moment = datetime.fromisoformat(first.pop("time"))
    assert begin <= moment <= datetime.now(UTC)
    assert "Traceback" in (trace := first.pop("exception"))
    assert "no\nroom" in trace
    assert first == {
        "level": "WARNING",
        "logger": "cema.test",
        "process": "server",
        "event": "test.happened",
        "message": "3 of a % \n \u2028 b",
        "count": 3,
        "what": "a % \n \u2028 b",
        "hidden": "inf",
    }
    assert (second["event"], second["message"]) == ("other", "of another package")


@given(st.dictionaries(st.text(), st.one_of(st.text(), st.floats(), st.integers(), st.none(), st.binary())))
def test_whatever_the_fields_hold_it_is_one_line_that_can_be_read(fields: dict[str, object]) -> None:
    one = record("x")
    one.fields = fields
    text = JsonLines("server").format(one)
    assert text.isascii()
    assert "\n" not in text

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    assert fields.keys() <= json.loads(text, parse_constant=refuse).keys()


def test_levels_hold_for_this_package_alone(
    restored_logging: None, capsys: pytest.CaptureFixture[str]
) -> None:
    for level, expected in {"debug": 5, "info": 4, "warning": 2, "error": 0}.items():
        start_logging("worker", level=level)  # type: ignore[arg-type]
        for name in ("cema.test", "another"):
            for number in (logging.DEBUG, logging.INFO, logging.WARNING):
                logging.getLogger(name).log(number, "%s", level)
        assert len(capsys.readouterr().err.splitlines()) == expected


def test_other_packages_may_be_held_back_further(
    restored_logging: None, capsys: pytest.CaptureFixture[str]
) -> None:
    for level, expected in {"debug": 4, "info": 3, "warning": 2, "error": 0}.items():
        start_logging("edge", level=level, others="warning")  # type: ignore[arg-type]
        for name in ("cema.test", "another"):
            for number in (logging.DEBUG, logging.INFO, logging.WARNING):
                logging.getLogger(name).log(number, "%s", level)
        assert len(capsys.readouterr().err.splitlines()) == expected


def test_a_line_for_people_has_time_process_and_level() -> None:
    text = TextLines("50 %s").format(record("from %s", "a"))
    assert text.endswith(" 50 %s INFO from a")
    try:
        raise OSError("no room")
    except OSError:
        failed = record("x")
        failed.exc_info = sys.exc_info()
    assert TextLines("server").format(failed).endswith("OSError: no room")


def test_no_field_takes_the_name_of_what_every_line_has() -> None:
    with pytest.raises(ValueError, match="rename them"):
        Event("a", logging.INFO, "", "", {"time": ""})
