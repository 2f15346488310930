"""Statistics over the latest inputs, against the definition in float64."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cema.errors import FormatError
from cema.ondevice.window import StatisticsWindow

PRIOR = np.array([[0.5, -1.0, 2.0], [1.0, 0.25, 4.0]], np.float32)


def _biased(rows: np.ndarray) -> np.ndarray:
    return np.stack([rows.mean(axis=0), rows.var(axis=0)])


def test_it_is_the_union_of_what_was_read() -> None:
    rng = np.random.default_rng(0)
    parts = [rng.normal(size=(count, 3)) * 2 + 1 for count in (3, 8, 5)]
    window = StatisticsWindow(PRIOR, weight=0, size=100)
    for part in parts:
        assert window.add(_biased(part), len(part))
    np.testing.assert_allclose(window.current(), _biased(np.concatenate(parts)), rtol=1e-5)
    assert window.count == 16


def test_the_prior_counts_for_its_images() -> None:
    rng = np.random.default_rng(1)
    part = rng.normal(size=(6, 3))
    window = StatisticsWindow(PRIOR, weight=2, size=100)
    window.add(_biased(part), 6)
    mean = (2 * PRIOR[0].astype(np.float64) + 6 * part.mean(axis=0)) / 8
    squares = (2 * (PRIOR[1] + PRIOR[0].astype(np.float64) ** 2) + (part**2).sum(axis=0)) / 8
    np.testing.assert_allclose(window.current(), np.stack([mean, squares - mean**2]), rtol=1e-5)


def test_a_share_of_the_source_stays_however_many_were_read() -> None:
    plain = StatisticsWindow(PRIOR, weight=0, size=10**6)
    shared = StatisticsWindow(PRIOR, weight=0, size=10**6, share=0.5)
    for window in (plain, shared):
        window.add(np.stack([np.full(3, 7.0), np.full(3, 9.0)]), 10**6)
    np.testing.assert_allclose(shared.current(), (plain.current() + PRIOR) / 2, rtol=1e-6)
    with pytest.raises(ValueError, match=r"share: expected a number in \[0, 1\), got 1"):
        StatisticsWindow(PRIOR, weight=0, size=4, share=1.0)


def test_before_any_input_it_is_the_prior() -> None:
    for weight in (0, 16):
        np.testing.assert_array_equal(StatisticsWindow(PRIOR, weight=weight, size=4).current(), PRIOR)


@given(
    st.integers(0, 2**32 - 1),
    st.lists(st.integers(1, 40), min_size=1, max_size=8),
    st.integers(1, 64),
    st.sampled_from([0.0, 0.5, 16.0]),
    st.sampled_from([0.0, 0.3]),
)
def test_a_pass_that_blends_has_the_statistics_that_follow(
    seed: int, counts: list[int], size: int, weight: float, share: float
) -> None:
    rng = np.random.default_rng(seed)
    window = StatisticsWindow(PRIOR, weight=weight, size=size, share=share)
    window.begin_at(PRIOR * 2)  # an update's
    for count in counts:
        observed = np.stack([rng.normal(size=3), rng.uniform(0, 2, 3)]).astype(np.float32)
        known, rate, source, part = window.blend(count)
        assert part == share
        np.testing.assert_array_equal(source, PRIOR)
        window.add(observed, count)
        difference = observed[0] - known[0]
        blended = np.stack(
            [
                known[0] + rate * difference,
                known[1] + rate * (observed[1] - known[1]) + rate * (1 - rate) * difference**2,
            ]
        )
        mixed = (1 - share) * blended + share * PRIOR
        np.testing.assert_allclose(window.current(), mixed, rtol=1e-4, atol=1e-5)
        assert window.count < size + max(counts)


def test_the_oldest_reading_goes_when_the_others_are_enough() -> None:
    window = StatisticsWindow(PRIOR, weight=0, size=8)
    for value in range(5):
        window.add(np.stack([np.full(3, value), np.zeros(3)]), 4)
    assert window.count == 8
    np.testing.assert_allclose(window.current()[0], 3.5)


def test_single_images_make_parts_together() -> None:
    rng = np.random.default_rng(4)
    images = rng.normal(size=(500, 9, 3))
    window = StatisticsWindow(PRIOR, weight=0, size=80)
    for image in images:
        window.add(_biased(image), 1)
        assert len(window._entries) <= 9
    assert 80 <= window.count < 90
    kept = images[-window.count :].reshape(-1, 3)
    np.testing.assert_allclose(window.current(), _biased(kept), rtol=1e-4)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_damaged_statistics_are_not_taken(value: float) -> None:
    window = StatisticsWindow(PRIOR, weight=1, size=8)
    wrong = PRIOR.copy()
    wrong[0, 1] = value
    assert not window.add(wrong, 4)
    assert not window.add(-np.ones((2, 3)), 4)
    np.testing.assert_array_equal(window.current(), PRIOR)
    with pytest.raises(FormatError, match="another model"):
        window.add(np.ones((2, 4)), 4)
