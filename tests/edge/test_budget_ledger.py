"""What was sent lately is counted over any window, whatever becomes of the process, the device and its clock."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cema.edge.budget_ledger import SLOTS, WINDOWS, Ledger, Moment
from cema.errors import FormatError

NOW = 1_800_000_000.0  # a wall clock that was set
HOUR, DAY, MONTH = WINDOWS.values()


def at(uptime: float, *, boot: str = "a", wall: float | None = None) -> Moment:
    return Moment(NOW + uptime if wall is None else wall, boot, uptime)


def test_what_was_sent_counts_for_the_window_and_at_most_a_slot_more() -> None:
    ledger = Ledger(at(0))
    ledger.add(1000, 3)
    assert [ledger.used(window, "bytes") for window in WINDOWS] == [1000] * 3
    assert [ledger.used(window, "samples") for window in WINDOWS] == [3] * 3
    for window, seconds in WINDOWS.items():
        slot = seconds // SLOTS
        ledger.advance(at(seconds))
        assert ledger.used(window, "bytes") == 1000, "a window has both its ends"
        assert ledger.free_in(window, "bytes", 999) == slot
        ledger.advance(at(seconds + slot))
        assert ledger.used(window, "bytes") == 0
        assert ledger.free_in(window, "bytes", 0) == 0


def test_what_a_slow_request_sent_counts_from_its_end() -> None:
    ledger = Ledger(at(0))
    ledger.begin(500, 1)
    ledger.advance(at(HOUR))
    assert ledger.used("hour", "bytes") == 500
    ledger.end()
    ledger.advance(at(2 * HOUR))
    assert ledger.used("hour", "bytes") == 500
    ledger.begin(70, 1)
    ledger.end(sent=False)
    ledger.advance(at(3 * HOUR + 60))
    assert ledger.used("hour", "bytes") == 0
    assert ledger.used("day", "bytes") == 500


def test_what_was_under_way_at_a_crash_counts_as_sent_at_the_restart() -> None:
    ledger = Ledger(at(0))
    ledger.begin(500, 1)
    again = Ledger(at(5000), ledger.dump())
    again.advance(at(5000 + HOUR))
    assert again.used("hour", "bytes") == 500
    again.advance(at(5000 + HOUR + 60))
    assert again.used("hour", "bytes") == 0


def test_a_wall_clock_says_nothing_while_the_device_runs() -> None:
    ledger = Ledger(at(0, wall=5.0))
    ledger.add(100, 1)
    for wall in (NOW, NOW + 50 * MONTH, 5.0, NOW - MONTH):
        ledger.advance(at(60, wall=wall))
        ledger = Ledger(at(60, wall=wall), ledger.dump())  # a restart of the program is none of the device
    assert ledger.time == 60
    assert ledger.used("hour", "bytes") == 100


def test_a_clock_that_was_not_set_gains_nothing_when_it_is() -> None:
    ledger = Ledger(at(0, wall=5.0))
    ledger.add(100, 1)
    ledger = Ledger(at(10, boot="b", wall=NOW), ledger.dump())
    assert ledger.used("hour", "bytes") == 100
    ledger = Ledger(at(10, boot="c", wall=7.0), ledger.dump())
    assert ledger.used("hour", "bytes") == 100
    ledger = Ledger(at(10, boot="d", wall=NOW + HOUR + 60), ledger.dump())
    assert ledger.used("hour", "bytes") == 0, "the clock was right before and after"


def test_a_clock_that_is_set_back_gives_nothing_back_and_locks_nothing() -> None:
    ledger = Ledger(at(0))
    ledger.add(100, 1)
    ledger = Ledger(at(0, boot="b", wall=NOW - 9 * MONTH), ledger.dump())
    assert ledger.used("hour", "bytes") == 100
    ledger.advance(at(HOUR + 60, boot="b", wall=NOW - 9 * MONTH))
    assert ledger.used("hour", "bytes") == 0, "the time that the device runs counts"


def test_a_clock_that_jumps_ahead_while_the_device_is_off_opens_the_budget_once() -> None:
    ledger = Ledger(at(0))
    opened = 0
    for boot in range(10):
        ledger.add(100, 1)
        ledger = Ledger(at(0, boot=f"ahead {boot}", wall=NOW + 2 * MONTH), ledger.dump())
        opened += ledger.used("month", "bytes") == 0
        ledger = Ledger(at(0, boot=f"back {boot}", wall=NOW), ledger.dump())
    assert opened == 1
    ledger.advance(at(MONTH + DAY, boot="back 9", wall=NOW + MONTH + DAY))
    assert ledger.used("month", "bytes") == 0, "a month of running opens it again"


def test_a_clock_that_was_set_while_the_device_ran_gains_nothing_at_the_next_start() -> None:
    ledger = Ledger(at(0, wall=NOW))  # behind by a day, as after a night without power
    ledger.add(100, 1)
    assert ledger.advance(at(1, wall=NOW + DAY)), "the disk has to know"
    assert not ledger.advance(at(2, wall=NOW + DAY + 1))
    ledger = Ledger(at(0, boot="b", wall=NOW + DAY + 10), ledger.dump())
    assert ledger.time == 2 + 9


def test_slots_are_bounded() -> None:
    ledger = Ledger(at(0))
    for minute in range(0, 3 * MONTH // 60, 7):
        ledger.advance(at(60.0 * minute))
        ledger.add(1000, 1)
    assert len(ledger.dump()) < 8000


@pytest.mark.parametrize("damage", ["", "nonsense", "[]", '{"format": "cema.budget/9"}', "\udcff"])
def test_what_is_no_ledger_is_refused(damage: str) -> None:
    with pytest.raises(FormatError, match=r"cema\.budget/1"):
        Ledger(at(0), damage.encode("utf-8", "surrogateescape"))


@pytest.mark.parametrize("slots", ["[[2,1,1],[1,1,1]]", "[[1,1,1],[1,1,1]]", "[[99,1,1]]", "[[0,-1,1]]"])
def test_slots_that_cannot_be_are_refused(slots: str) -> None:
    ledger = Ledger(at(0))
    ledger.advance(at(200))
    data = ledger.dump().replace(b'"hour":[]', f'"hour":{slots}'.encode())
    with pytest.raises(FormatError):
        Ledger(at(200), data)


@dataclass
class Device:
    """A device in true time, whose wall clock may be wrong."""

    true: float = 0.0
    boots: int = 0
    booted: float = 0.0
    offset: float = 0.0
    began: list[tuple[float, int]] = field(default_factory=list)  # requests, in true time
    ended: list[tuple[float, int]] = field(default_factory=list)
    pending: int = 0

    @property
    def moment(self) -> Moment:
        return Moment(NOW + self.true + self.offset, f"boot {self.boots}", self.true - self.booted)

    def offer(self, ledger: Ledger, size: int, allowed: int) -> None:
        """Send, if the limit allows it."""
        self.end()
        ledger.end()
        if ledger.used("hour", "bytes") + size <= allowed:
            ledger.begin(size, 1)
            self.began.append((self.true, size))
            self.pending = size

    def end(self) -> None:
        """All bytes of a request go out at its end, if not at its beginning."""
        self.ended.append((self.true, self.pending))
        self.pending = 0


def most_in_an_hour(sent: list[tuple[float, int]]) -> int:
    """The most in any window of an hour, both ends included; one that is worst ends with something sent."""
    return max((sum(n for t, n in sent if end - HOUR <= t <= end) for end, _ in sent), default=0)


OFFSETS = {
    "right": 0.0,
    "unset": -NOW,
    "far behind": -1e8,
    "behind": -3600.0,
    "ahead": 86_400.0,
    "far ahead": 1e9,
}
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("offer"), st.sampled_from([1, 30, 100])),
        st.tuples(st.just("fill"), st.just(0)),
        st.tuples(st.just("pass"), st.sampled_from([1, 7, 59, 61, 1799, 3540, 3599, 3600, 90_000])),
        st.tuples(st.just("clock"), st.sampled_from(sorted(OFFSETS))),
        st.tuples(st.just("crash"), st.just(0)),
        st.tuples(st.just("end"), st.just(0)),
        st.tuples(st.just("off"), st.sampled_from([0, 5, 300, 3000, 3700])),
    ),
    max_size=50,
)


def restart(device: Device, ledger: Ledger, seconds_off: int) -> Ledger:
    device.end()
    device.true += seconds_off
    device.boots, device.booted = device.boots + 1, device.true
    return Ledger(device.moment, ledger.dump())


def take(device: Device, ledger: Ledger, kind: str, value: Any, offsets: tuple[str, ...]) -> Ledger:
    """Do one step; of the wall clock's only those that are allowed, and of switching off only if some are not."""
    if kind == "offer":
        device.offer(ledger, value, 100)
    elif kind == "fill":
        device.end()
        ledger.end()
        device.offer(ledger, max(1, 100 - ledger.used("hour", "bytes")), 100)
    elif kind == "pass":
        device.true += value
        ledger.advance(device.moment)
    elif kind == "clock" and value in offsets:
        device.offset = OFFSETS[value]
        ledger.advance(device.moment)
    elif kind == "crash":
        device.end()
        return Ledger(device.moment, ledger.dump())
    elif kind == "end":
        device.end()
        ledger.end()
    elif kind == "off" and len(offsets) < len(OFFSETS):
        return restart(device, ledger, value)
    return ledger


@settings(max_examples=1000, deadline=None)
@given(STEPS, st.sampled_from([tuple(OFFSETS), ("right", "unset")]), st.sampled_from(["right", "unset"]))
def test_no_window_has_more_than_the_limit(
    steps: list[tuple[str, Any]], offsets: tuple[str, ...], first: str
) -> None:
    """While the device runs, the wall clock says anything; where it is switched off, it is right or was not set."""
    device = Device(offset=OFFSETS[first])
    ledger = Ledger(device.moment)
    for kind, value in steps:
        ledger = take(device, ledger, kind, value, offsets)
    assert most_in_an_hour(device.began) <= 100
    assert most_in_an_hour(device.ended) <= 100
    # Nothing is locked either: an hour and a slot later everything is allowed.
    ledger.end()
    device.true += HOUR + HOUR // SLOTS
    ledger.advance(device.moment)
    assert ledger.used("hour", "bytes") == 0
    assert ledger.free_in("hour", "bytes", 0) == 0


@settings(max_examples=1000, deadline=None)
@given(STEPS)
def test_time_never_gains_more_than_the_clock_was_ever_ahead(steps: list[tuple[str, Any]]) -> None:
    device = Device()
    ledger = Ledger(device.moment)
    off, ahead = 0.0, 0.0
    for kind, value in steps:
        before = ledger.time
        if kind == "pass":
            device.true += value
        elif kind == "clock":
            device.offset = OFFSETS[value]
        elif kind == "off":
            off += value
            ledger = restart(device, ledger, value)
        ledger.advance(device.moment)
        running = device.true - off
        ahead = max(ahead, device.moment.wall - NOW - running)
        assert before <= ledger.time <= running + ahead
