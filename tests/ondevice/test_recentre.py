"""Re-centring of logits against its formula in float64."""

from __future__ import annotations

import json

import numpy as np
import pytest

from cema.errors import FormatError
from cema.ondevice.recentre import LogitCentre, RecentreConfig


def test_the_shift_is_that_of_the_mean() -> None:
    rng = np.random.default_rng(0)
    source, logits = rng.normal(size=5), rng.normal(size=(40, 5)).astype(np.float32)
    centre = LogitCentre(source, weight=10)
    for start in range(0, 40, 7):
        centre.observe(logits[start : start + 7])
    expected = logits - 40 / 50 * (logits.astype(np.float64).mean(axis=0) - source)
    np.testing.assert_allclose(centre.shifted(logits), expected, rtol=1e-5, atol=1e-5)
    assert centre.shifted(logits).dtype == np.float32


def test_at_first_and_after_a_change_nothing_is_shifted() -> None:
    centre = LogitCentre(np.zeros(3), weight=0)
    logits = np.ones((2, 3), np.float32)
    np.testing.assert_array_equal(centre.shifted(logits), logits)
    centre.observe(logits * 4)
    assert not np.array_equal(centre.shifted(logits), logits)
    centre.clear()
    np.testing.assert_array_equal(centre.shifted(logits), logits)


def test_older_images_are_forgotten() -> None:
    centre = LogitCentre(np.zeros(1), weight=0, memory=10)
    centre.observe(np.zeros((1000, 1), np.float32))
    for _ in range(100):
        centre.observe(np.ones((1, 1), np.float32))
    assert centre.mean[0] == pytest.approx(1 - 0.9**100, abs=1e-6)


def test_damaged_logits_say_nothing() -> None:
    centre = LogitCentre(np.zeros(2))
    centre.observe(np.array([[np.nan, 0], [1, 3]], np.float32))
    assert centre.mean.tolist() == [1, 3]
    assert centre.count == 1
    centre.observe(np.full((3, 2), np.inf, np.float32))
    assert centre.count == 1


def test_a_state_goes_on_where_it_was() -> None:
    one, other = LogitCentre(np.zeros(2)), LogitCentre(np.zeros(2))
    one.observe(np.array([[1.0, 2.0], [3.0, 5.0]], np.float32))
    other.load_state(json.loads(json.dumps(one.state())))
    logits = np.array([[0.25, -1.0]], np.float32)
    np.testing.assert_array_equal(one.shifted(logits), other.shifted(logits))
    for wrong in ({}, {"mean": [1.0], "count": 1}, {"mean": [1.0, np.nan], "count": 1}):
        with pytest.raises(FormatError, match="begin anew"):
            other.load_state(wrong)
    with pytest.raises(FormatError, match="begin anew"):
        other.load_state({"mean": [1.0, 2.0], "count": -1})


def test_modes() -> None:
    def made(mode: str, statistics: bool) -> bool:
        return RecentreConfig(mode=mode).centre(np.zeros(2), statistics=statistics) is not None  # type: ignore[arg-type]

    assert [made(mode, statistics=True) for mode in ("off", "on", "auto")] == [False, True, False]
    assert [made(mode, statistics=False) for mode in ("off", "on", "auto")] == [False, True, True]
    with pytest.raises(ValueError, match="weight"):
        RecentreConfig(weight=-1)
    with pytest.raises(ValueError, match="memory"):
        RecentreConfig(memory=0)
