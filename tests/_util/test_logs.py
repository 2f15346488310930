"""Messages of one kind are few, whoever causes them."""

from __future__ import annotations

import logging

import pytest

from cema._util.logs import MOST_KINDS, Throttle


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
