"""The stream waits for the worker, and not for ever."""

from __future__ import annotations

import pytest

from cema.demo.pace import Pace


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def pace(clock: Clock, *, edges: int = 2, rate: float = float("inf")) -> Pace:
    return Pace(edges, 16, rate, limit=64, least=32, stall_seconds=100.0, clock=clock)


def run_freely(made: Pace, selected: int = 16) -> int:
    """Let every edge predict at once what it is told to, all samples staying on the device; return the batches."""
    batches = 0
    while (edge := made.next()) is not None:
        made.predicted(edge, selected)
        batches += 1
        assert batches < 1000, "the stream never waits"
    return batches


def test_the_stream_stops_before_more_waits_than_the_worker_keeps() -> None:
    clock = Clock()
    made = pace(clock)
    assert run_freely(made) == 4
    assert made.waiting == 64
    made.delivered(0, 32)
    made.delivered(1, 32)
    assert made.next() is None
    made.cloud(backlog=64, cursor=0)
    assert made.next() is None
    made.cloud(backlog=32, cursor=32)
    clock.now += 1
    assert run_freely(made) == 2


def test_batches_on_their_way_count_with_all_their_images() -> None:
    made = pace(Clock(), edges=16)
    told = [made.next() for _ in range(5)]
    assert told == [0, 1, 2, 3, None]
    made.predicted(0, 0)
    assert made.next() == 4


def test_less_than_the_worker_begins_with_never_stops_the_stream() -> None:
    clock = Clock()
    made = Pace(1, 64, float("inf"), limit=64, least=32, clock=clock)
    made.cloud(backlog=31, cursor=0)
    assert made.next() == 0


def test_the_camera_sets_the_pace_where_the_worker_follows() -> None:
    clock = Clock()
    made = pace(clock, edges=1, rate=16.0)
    batches = 0
    for _ in range(100):
        batches += run_freely(made, selected=0)
        clock.now += 0.1
    assert batches == pytest.approx(10, abs=1)


def test_what_was_waited_for_is_not_made_up_for() -> None:
    clock = Clock()
    made = pace(clock, edges=1, rate=16.0)
    made.cloud(backlog=64, cursor=0)
    clock.now = 50.0
    assert made.next() is None
    made.cloud(backlog=0, cursor=64)
    assert run_freely(made, selected=0) <= 2


def test_a_slow_edge_does_not_hold_the_others() -> None:
    clock = Clock()
    made = pace(clock, rate=16.0)
    told = []
    for _ in range(10):
        while (edge := made.next()) is not None:
            told.append(edge)
            if edge == 1:
                made.predicted(1, 0)
        clock.now += 1.0
    assert told.count(0) == 2
    assert told.count(1) >= 9


def test_a_worker_that_makes_no_progress_holds_the_stream_for_a_bounded_time() -> None:
    clock = Clock()
    made = pace(clock)
    run_freely(made)
    made.cloud(backlog=64, cursor=7)
    clock.now = 99.0
    assert made.next() is None
    assert not made.stalled
    clock.now = 101.0
    assert made.next() is not None
    assert made.stalled
    made.cloud(backlog=80, cursor=39)
    assert not made.stalled
    assert made.next() is None


def test_progress_however_slow_is_waited_for() -> None:
    clock = Clock()
    made = pace(clock)
    for cursor in range(20):
        made.cloud(backlog=64, cursor=cursor)
        clock.now += 90.0
        assert made.next() is None
    assert not made.stalled


def test_the_devices_word_corrects_what_is_on_its_way() -> None:
    made = pace(Clock())
    run_freely(made)
    made.on_device(0, 0)  # dropped, or the same images as before
    made.on_device(1, 0)
    assert made.waiting == 0
    assert made.next() is not None


def test_an_edge_that_has_ended_is_told_nothing() -> None:
    made = pace(Clock(), edges=1)
    assert made.next() == 0
    made.finished(0)
    assert made.next() is None
    assert made.waiting == 0
