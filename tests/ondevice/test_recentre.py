"""Re-centring of logits against its formula in float64."""

from __future__ import annotations

import numpy as np
import pytest

from cema.ondevice.recentre import LogitCentre, RecentreConfig


def independent(rows: np.ndarray) -> float:
    """How many independent rows the mean of these is worth, written out."""
    count, mean = len(rows), rows.mean(axis=0)
    variance = rows.var(axis=0).sum()
    r = ((rows[1:] * rows[:-1]).sum(axis=1).mean() - mean @ mean) / variance
    r = min(max(r, 0.0), 1.0)
    share = (1 - r) / (1 + r)
    whole = count // 32 * 32
    for size in (32, 64, 128, 256):
        # The newest blocks, where the oldest is one too many.
        means = [rows[i : i + size].mean(axis=0) for i in range(whole % size, whole - size + 1, size)]
        if len(means) >= 4:
            share = min(share, variance / size / np.var(means, axis=0, ddof=1).sum())
    return count * share


@pytest.mark.parametrize("count", [40, 300, 1000])
@pytest.mark.parametrize("run", [1, 20, 100])
def test_the_shift_is_that_of_the_mean_as_far_as_it_can_be_trusted(count: int, run: int) -> None:
    rng = np.random.default_rng(0)
    source = rng.normal(size=5)
    labels = np.repeat(rng.integers(0, 5, count), run)[:count]
    logits = (rng.normal(size=(count, 5)) + 4 * np.eye(5)[labels] + [1, 0, 0, 0, -1]).astype(np.float32)
    centre = LogitCentre(source, weight=10)
    for start in range(0, count, 7):
        centre.observe(logits[start : start + 7])
    wide = logits.astype(np.float64)
    worth = independent(wide)
    assert centre.independent() == pytest.approx(worth, rel=1e-6)
    expected = logits - worth / (worth + 10) * (wide.mean(axis=0) - source)
    np.testing.assert_allclose(centre.shifted(logits), expected, rtol=1e-5, atol=1e-5)
    assert centre.shifted(logits).dtype == np.float32


def test_labels_in_long_runs_are_hardly_shifted() -> None:
    rng = np.random.default_rng(1)
    shuffled = rng.permutation(np.repeat(np.arange(10), 100))
    shifts = []
    for labels in (shuffled, np.sort(shuffled)):
        logits = (rng.normal(size=(1000, 10)) + 6 * np.eye(10)[labels]).astype(np.float32)
        centre = LogitCentre(np.full(10, 0.6))
        centre.observe(logits[:256])
        shifts.append((centre.independent(), float(np.abs(centre.shift()).max())))
    assert shifts[0][0] > 100
    assert shifts[1][0] < 12
    assert shifts[1][1] < 0.4


def test_at_first_and_after_a_change_nothing_is_shifted() -> None:
    centre = LogitCentre(np.zeros(3), weight=0)
    logits = np.ones((2, 3), np.float32)
    np.testing.assert_array_equal(centre.shifted(logits), logits)
    centre.observe(logits * 4)
    assert not np.array_equal(centre.shifted(logits), logits)
    centre.clear()
    np.testing.assert_array_equal(centre.shifted(logits), logits)


def test_older_images_are_forgotten() -> None:
    centre = LogitCentre(np.zeros(1), weight=0, memory=64)
    centre.observe(np.zeros((1000, 1), np.float32))
    for _ in range(96):
        centre.observe(np.ones((1, 1), np.float32))
    assert centre.mean[0] == 1
    assert 64 <= centre.count < 96


def test_equal_logits_count_as_they_are() -> None:
    centre = LogitCentre(np.zeros(2), weight=8)
    centre.observe(np.full((8, 2), 4.0, np.float32))
    np.testing.assert_allclose(centre.shift(), [2.0, 2.0])


def test_damaged_logits_say_nothing() -> None:
    centre = LogitCentre(np.zeros(2))
    centre.observe(np.array([[np.nan, 0], [1, 3]], np.float32))
    assert centre.mean.tolist() == [1, 3]
    assert centre.count == 1
    centre.observe(np.full((3, 2), np.inf, np.float32))
    assert centre.count == 1


def test_modes() -> None:
    def made(mode: str, statistics: bool) -> bool:
        return RecentreConfig(mode=mode).centre(np.zeros(2), statistics=statistics) is not None  # type: ignore[arg-type]

    assert [made(mode, statistics=True) for mode in ("off", "on", "auto")] == [False, True, False]
    assert [made(mode, statistics=False) for mode in ("off", "on", "auto")] == [False, True, True]
    with pytest.raises(ValueError, match="weight"):
        RecentreConfig(weight=-1)
    with pytest.raises(ValueError, match="memory"):
        RecentreConfig(memory=0)
