"""When a device reads statistics of its own inputs, and from which."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cema.ondevice.drift import input_statistics
from cema.ondevice.own_domain import OwnDomain
from cema.ondevice.own_statistics import OwnStatistics, Reading, StatisticsConfig
from cema.ondevice.refresh import RefreshSchedule

PRIOR = np.array([[0.0], [1.0]], np.float32)


def _inputs(rng: np.random.Generator, count: int, shift: float = 0.0) -> np.ndarray:
    return (rng.normal(size=(count, 1, 8, 8)) + shift).astype(np.float32)


def _own(**settings: float) -> OwnStatistics:
    return OwnStatistics(PRIOR, StatisticsConfig(**({"limit": 0.0} | settings)))  # type: ignore[arg-type]


def _feed(own: OwnStatistics, inputs: np.ndarray, size: int) -> list[tuple[int, Reading]]:
    """Let a device predict inputs, `size` at a time; return the readings with the images seen by then."""
    readings = []
    for start in range(0, len(inputs), size):
        part = inputs[start : start + size]
        reading = own.observe(part, input_statistics(part))
        if reading is not None:
            readings.append((start + len(part), reading))
            own.took(reading, np.stack([reading.inputs.mean((0, 2, 3)), reading.inputs.var((0, 2, 3))]))
    return readings


def test_single_images_are_read_at_powers_of_two_and_then_seldom() -> None:
    own = _own(ring=16, samples=48, every=64)
    inputs = _inputs(np.random.default_rng(0), 200)
    readings = _feed(own, inputs, 1)
    assert [at for at, _ in readings] == [1, 2, 4, 8, 16, 80, 144]
    for at, reading in readings:
        np.testing.assert_array_equal(reading.inputs, inputs[max(0, at - 16) : at])
        assert reading.answers == (at == 1)
    read = np.concatenate([inputs[:16], inputs[64:80], inputs[128:144]])
    assert own.window.count == len(read)
    mean = read.astype(np.float64).mean() * len(read) / (len(read) + own.config.prior)
    np.testing.assert_allclose(own.window.current()[0, 0], mean, atol=1e-5)


def test_batches_answer_themselves() -> None:
    own = _own(ring=16, samples=48, every=64)
    readings = _feed(own, _inputs(np.random.default_rng(1), 320), 32)
    assert [at for at, _ in readings] == [32, 96, 160, 224, 288]
    assert all(reading.answers and len(reading.inputs) == 32 for _, reading in readings)


def test_an_update_makes_the_next_call_read() -> None:
    own = _own(ring=16, samples=48, every=1000)
    rng = np.random.default_rng(2)
    _feed(own, _inputs(rng, 40), 4)
    assert not _feed(own, _inputs(rng, 40), 4)
    own.renew()
    ((at, reading),) = _feed(own, _inputs(rng, 40), 4)
    assert (at, len(reading.inputs)) == (4, 16)


def test_a_change_of_domain_begins_anew() -> None:
    own = _own(ring=16, samples=64, every=10_000, limit=36.0)
    rng = np.random.default_rng(3)
    _feed(own, _inputs(rng, 256), 1)
    readings = _feed(own, _inputs(rng, 64, shift=3.0), 1)
    assert own.domain.changes == 1
    at, first = readings[0]
    assert at < 12
    assert len(first.inputs) == 1
    # What was read before has gone; of the readings that overlap, the last one counts.
    assert own.window.count == 16
    np.testing.assert_allclose(own.window.current()[0, 0], 3 * 16 / 32, atol=0.2)


def test_a_pass_that_ends_in_another_domain_is_not_taken() -> None:
    own = _own(ring=16, samples=48, every=64)
    inputs = _inputs(np.random.default_rng(4), 32)
    reading = own.observe(inputs, input_statistics(inputs))
    assert reading is not None
    own.restart()
    assert own.took(reading, np.ones((2, 1))) is None
    assert own.took(own.reading(inputs), np.full((2, 1), np.nan)) is None
    assert own.window.count == 0


def test_no_images_are_no_call() -> None:
    own = _own()
    assert own.observe(np.empty((0, 1, 8, 8), np.float32), np.empty((0, 8), np.float32)) is None


@given(st.integers(1, 64), st.integers(0, 500), st.lists(st.integers(1, 100), max_size=40))
def test_schedule(ring: int, more: int, calls: list[int]) -> None:
    schedule, seen, due = RefreshSchedule(ring=ring, every=ring + more), 0, []
    for count in calls:
        seen += count
        if schedule.due(count):
            due.append(seen)
    # Never more often than once a call, never later than the rule allows.
    if calls:
        assert due[0] == calls[0]
    for earlier, later in itertools.pairwise(due):
        assert later - earlier <= ring + more + max(calls)


def test_the_first_inputs_describe_the_domain() -> None:
    rng = np.random.default_rng(5)
    domain = OwnDomain(36.0, size=64)
    calm = [domain.observe(input_statistics(_inputs(rng, 8))) for _ in range(100)]
    assert not any(calm)
    changed = [domain.observe(input_statistics(_inputs(rng, 8, shift=2.0))) for _ in range(100)]
    assert changed.index(True) < 2
    assert sum(changed) == 1
    silent = OwnDomain(0.0)
    assert not any(silent.observe(input_statistics(_inputs(rng, 64, shift=i))) for i in range(5))


@pytest.mark.parametrize(
    "settings", [{"prior": -1}, {"ring": 0}, {"samples": 8}, {"every": 8}, {"limit": float("nan")}]
)
def test_settings_out_of_range_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        StatisticsConfig(**settings)  # type: ignore[arg-type]
