"""Re-centring of logits against its formula in float64."""

from __future__ import annotations

import numpy as np
import pytest

from cema.ondevice.recentre import LogitCentre, RecentreConfig


@pytest.mark.parametrize("trust", [1.0, 0.25, 0.0])
def test_the_shift_is_that_of_the_mean(trust: float) -> None:
    rng = np.random.default_rng(0)
    source, logits = rng.normal(size=5), rng.normal(size=(40, 5)).astype(np.float32)
    centre = LogitCentre(source, weight=10)
    for start in range(0, 40, 7):
        centre.observe(logits[start : start + 7])
    expected = trust * 40 / (trust * 40 + 10) * (logits.astype(np.float64).mean(axis=0) - source)
    np.testing.assert_allclose(centre.shift(trust), expected, rtol=1e-5, atol=1e-6)
    assert centre.shift().dtype == np.float32


def test_at_first_and_after_a_change_nothing_is_shifted() -> None:
    centre = LogitCentre(np.zeros(3), weight=0)
    assert not centre.shift().any()
    centre.observe(np.full((2, 3), 4.0, np.float32))
    assert centre.shift().tolist() == [4, 4, 4]
    centre.clear()
    assert not centre.shift().any()


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


def test_modes() -> None:
    def made(mode: str, *, statistics: bool, known: bool = True) -> bool:
        config = RecentreConfig(mode=mode)  # type: ignore[arg-type]
        source = np.zeros(2) if known else None
        return config.centre(source, classes=2, statistics=statistics) is not None

    modes = ("off", "on", "auto")
    assert [made(mode, statistics=True) for mode in modes] == [False, True, False]
    assert [made(mode, statistics=False) for mode in modes] == [False, True, True]
    assert [made(mode, statistics=False, known=False) for mode in modes] == [False, True, False]
    with pytest.raises(ValueError, match="weight"):
        RecentreConfig(weight=-1)
    with pytest.raises(ValueError, match="memory"):
        RecentreConfig(memory=0)
