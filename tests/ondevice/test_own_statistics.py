"""When a device reads statistics of its own inputs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cema.ondevice.drift import input_statistics
from cema.ondevice.own_domain import OwnDomain
from cema.ondevice.own_statistics import OwnStatistics, Reading, StatisticsConfig

PRIOR = np.array([[0.0], [1.0]], np.float32)


def _observe(own: OwnStatistics, count: int) -> Reading | None:
    return own.begin(count) if own.due(count) else None


def _inputs(rng: np.random.Generator, count: int, shift: float = 0.0) -> np.ndarray:
    return (rng.normal(size=(count, 1, 8, 8)) + shift).astype(np.float32)


def _own(**settings: float) -> OwnStatistics:
    return OwnStatistics(PRIOR, StatisticsConfig(**settings))  # type: ignore[arg-type]


def _feed(own: OwnStatistics, inputs: np.ndarray, size: int) -> list[bool]:
    """Let a device predict inputs, `size` at a time; return which calls were read."""
    read = []
    for start in range(0, len(inputs), size):
        part = inputs[start : start + size]
        reading = _observe(own, len(part))
        read.append(reading is not None)
        if reading is not None:
            own.took(reading, np.stack([part.mean((0, 2, 3)), part.var((0, 2, 3))]), len(part))
    return read


@pytest.mark.parametrize("size", [1, 4, 16])
def test_first_images_are_read_and_then_some_from_time_to_time(size: int) -> None:
    own = _own(samples=48, read=16, every=64)
    inputs = _inputs(np.random.default_rng(0), 400)
    read = np.repeat(_feed(own, inputs, size), size)
    expected = np.zeros(400, bool)
    expected[:48] = True
    # The call in which the time is over is read; its images are the first of those that are.
    for begin in range(48 + 64 - size, 400, 64 - size + 16):
        expected[begin : begin + 16] = True
    np.testing.assert_array_equal(read, expected)
    kept = inputs[read][-own.window.count :].astype(np.float64)
    mean = kept.mean() * len(kept) / (len(kept) + own.config.prior)
    np.testing.assert_allclose(own.window.current()[0, 0], mean, atol=1e-5)


def test_after_an_update_the_next_images_are_read() -> None:
    own, rng = _own(samples=48, read=16, every=10_000), np.random.default_rng(1)
    _feed(own, _inputs(rng, 100), 4)
    assert not own.reading
    count = own.window.count
    own.renew()
    assert own.reading
    assert _feed(own, _inputs(rng, 40), 4) == [True] * 4 + [False] * 6
    assert own.window.count >= count


def test_a_new_domain_begins_anew() -> None:
    own, rng = _own(samples=48, read=16, every=10_000), np.random.default_rng(2)
    assert sum(_feed(own, _inputs(rng, 256), 1)) == 48
    own.restart()
    bright = _inputs(rng, 128, shift=3.0)
    assert _feed(own, bright, 1) == [True] * 48 + [False] * 80
    # Nothing from before is left.
    expected = bright[:48].mean() * 48 / (48 + own.config.prior)
    np.testing.assert_allclose(own.window.current()[0, 0], expected, atol=1e-5)


def test_a_pass_that_ends_in_another_domain_is_not_taken() -> None:
    own = _own(samples=48, read=16)
    inputs = _inputs(np.random.default_rng(3), 32)
    reading = _observe(own, len(inputs))
    assert reading is not None
    own.restart()
    assert not own.took(reading, np.ones((2, 1)), 32)
    again = _observe(own, len(inputs))
    assert again is not None
    assert not own.took(again, np.full((2, 1), np.nan), 32)
    assert (own.window.count, own.reading) == (0, True)


def test_no_images_are_no_call() -> None:
    assert _observe(_own(), 0) is None


@given(st.lists(st.integers(1, 100), max_size=60), st.integers(1, 64), st.integers(1, 500))
def test_every_image_is_counted_however_calls_are_cut(calls: list[int], read: int, every: int) -> None:
    own = _own(samples=64, read=read, every=every)
    seen = first = unread = 0
    for count in calls:
        reading = _observe(own, count)
        assert (reading is not None) == (first < 64 or unread + count >= every or 0 < own._left < 65)
        if reading is None:
            unread += count
        else:
            unread, first = 0, first + count
            assert own.took(reading, PRIOR, count)
        seen += count
        assert unread < every


def test_the_first_inputs_describe_the_domain() -> None:
    rng = np.random.default_rng(5)
    domain = OwnDomain(36.0, size=64)
    calm = [domain.observe(input_statistics(_inputs(rng, 8))) for _ in range(100)]
    assert not any(calm)
    changed = [domain.observe(input_statistics(_inputs(rng, 8, shift=2.0))) for _ in range(100)]
    assert changed.index(True) < 2
    assert sum(changed) == 1
    one_by_one = OwnDomain(36.0, size=64)
    assert not any(one_by_one.observe_inputs(image[None]) for image in _inputs(rng, 256))
    alarms = [one_by_one.observe_inputs(image[None]) for image in _inputs(rng, 256, shift=2.0)]
    # One of four is compared, eight at a time.
    assert alarms.index(True) < 64
    assert sum(alarms) == 1
    silent = OwnDomain(0.0)
    assert not any(silent.observe(input_statistics(_inputs(rng, 64, shift=i))) for i in range(5))


@pytest.mark.parametrize("known", [1.0, 0.5])
@pytest.mark.parametrize("size", [1, 5, 8, 32])
def test_statistics_that_are_known_decide_as_inputs_do(size: int, known: float) -> None:
    rng, coin = np.random.default_rng(6), np.random.default_rng(size)
    from_inputs, told = OwnDomain(36.0), OwnDomain(36.0)
    found = []
    for call in range(1536 // size):
        inputs = _inputs(rng, size, shift=2.0 * (call * size // 384 % 2))
        rows = input_statistics(inputs) if coin.random() < known else None
        found.append(from_inputs.observe_inputs(inputs))
        assert told.observe_inputs(inputs, rows) == found[-1]
    assert sum(found) == from_inputs.changes == told.changes == 3


@pytest.mark.parametrize(
    "settings",
    [
        {"prior": -1},
        {"read": 0},
        {"samples": 8},
        {"every": 0},
        {"prior": float("nan")},
        {"source_share": 1.0},
        {"source_share": -0.1},
        {"source_share": float("nan")},
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        StatisticsConfig(**settings)  # type: ignore[arg-type]
