"""What inputs look like: statistics, environments, and how far the latest inputs are from one."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cema.data.corruptions import corrupt_images
from cema.data.digits import load_digits
from cema.errors import FormatError
from cema.models.digits import DIGITS_PREPROCESSING
from cema.ondevice.drift import Domain, DriftMonitor, InputAverage, input_statistics, statistics_size


def inputs(n: int, channels: int = 3, side: int = 20, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, channels, side, side)).astype(np.float32)


def by_hand(image: np.ndarray) -> list[float]:
    """One input's statistics (C, H, W), pixel by pixel, in float64."""
    image = image.astype(np.float64)
    channels = image.shape[0]
    grey = sum(image) / channels
    values = [grey.mean(), math.log(math.sqrt(((grey - grey.mean()) ** 2).mean()) + 0.01)]
    if channels == 3:
        red, green, blue = (plane.mean() for plane in image)
        values += [red - green, blue - green]
    for _ in range(3):
        height, width = grey.shape
        if min(height, width) < 2:
            break
        across = [abs(grey[y, x + 1] - grey[y, x]) for y in range(height) for x in range(width - 1)]
        down = [abs(grey[y + 1, x] - grey[y, x]) for y in range(height - 1) for x in range(width)]
        values += [math.log(np.mean(across) + 0.01), math.log(np.mean(down) + 0.01)]
        grey = np.array(
            [
                [grey[2 * y : 2 * y + 2, 2 * x : 2 * x + 2].mean() for x in range(width // 2)]
                for y in range(height // 2)
            ]
        )
    return values


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [1, 2, 5, 12, 33])
def test_statistics_are_what_the_definition_gives(channels: int, side: int) -> None:
    batch = inputs(3, channels, side)
    rows = input_statistics(batch)
    assert rows.dtype == np.float32
    assert rows.shape == (3, statistics_size(channels, side, side))
    np.testing.assert_allclose(rows, [by_hand(image) for image in batch], rtol=1e-4, atol=1e-5)


def test_of_a_large_input_the_middle_counts() -> None:
    batch = inputs(2, 3, 200)
    np.testing.assert_array_equal(
        input_statistics(batch), input_statistics(batch[:, :, 36:164, 36:164].copy())
    )
    assert input_statistics(batch[:0]).shape == (0, 10)


@settings(max_examples=60, deadline=None)
@given(st.integers(3, 40), st.integers(1, 10), st.integers(0, 99), st.floats(1e-3, 1e3))
def test_an_environment_is_mean_and_covariance(more: int, size: int, seed: int, spread: float) -> None:
    n = size + more
    rows = np.random.default_rng(seed).normal(size=(n, size)) * spread
    domain = Domain.of(rows)
    np.testing.assert_allclose(domain.mean, rows.mean(0), rtol=1e-5, atol=1e-6 * spread)
    deviations = rows - rows.mean(0)
    expected = deviations.T @ deviations / (n - size - 2) * (n + 1) / n
    np.testing.assert_allclose(domain.covariance, expected, rtol=1e-4, atol=1e-5 * spread**2)
    spread_of = np.diag(domain.covariance).astype(np.float64)
    widened = domain.covariance.astype(np.float64) + np.diag(0.01 * spread_of + 0.0004)
    np.testing.assert_allclose(domain.precision() @ widened, np.eye(size), atol=1e-6)


def test_the_inverse_does_not_overstate_what_few_inputs_say() -> None:
    rng = np.random.default_rng(0)
    for n in (16, 32, 96):
        inverses = [np.linalg.inv(Domain.of(rng.normal(size=(n, 10))).covariance) for _ in range(300)]
        assert np.mean([np.trace(i) / 10 for i in inverses]) == pytest.approx(n / (n + 1), rel=0.15)
    with pytest.raises(ValueError, match="at least 13"):
        Domain.of(rng.normal(size=(12, 10)))


@pytest.mark.parametrize(
    ("mean", "covariance"),
    [
        (np.zeros(2), np.eye(3)),
        (np.zeros((2, 1)), np.eye(2)),
        (np.zeros(0), np.zeros((0, 0))),
        (np.array([0, np.nan]), np.eye(2)),
        (np.zeros(2), np.array([[1, np.inf], [np.inf, 1]])),
        (np.zeros(2), np.array([[1, 0.5], [0.4, 1]])),
        (np.zeros(2), -np.eye(2)),
    ],
)
def test_what_is_no_environment_is_refused(mean: np.ndarray, covariance: np.ndarray) -> None:
    with pytest.raises(FormatError, match="expected"):
        Domain(mean.astype(np.float32), covariance.astype(np.float32))


def test_a_matrix_that_is_no_covariance_has_no_precision() -> None:
    impossible = Domain(np.zeros(2, np.float32), np.array([[1, 5], [5, 1]], np.float32))
    with pytest.raises(FormatError, match="negative eigenvalue"):
        impossible.precision()


def reference_distance(rows: np.ndarray, domain: Domain) -> float:
    """The formula of `InputAverage.distance` from the whole history at once, in float64."""
    weights = 0.2 * 0.8 ** np.arange(len(rows))[::-1]
    weights /= weights.sum()
    mean = weights @ rows
    precision = domain.precision()
    deviation = mean - domain.mean
    noise = (weights**2).sum()
    within = sum(w * (row - mean) @ precision @ (row - mean) for w, row in zip(weights, rows, strict=True))
    spread = 1.0 if len(rows) == 1 else min(1.0, within / (rows.shape[1] * (1 - noise)))
    return float(deviation @ precision @ deviation / (noise + (1 - noise) * (1 - spread)))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(1, 10), st.integers(0, 99), st.floats(0, 10))
def test_the_distance_follows_the_formula(n: int, size: int, seed: int, shift: float) -> None:
    rng = np.random.default_rng(seed)
    domain = Domain.of(rng.normal(size=(50, size)))
    rows = rng.normal(size=(n, size)) * rng.uniform(0.1, 3) + shift
    average = InputAverage(size)
    assert average.distance(domain, domain.precision()) == 0.0
    for row in rows:
        average.observe(row)
    got = average.distance(domain, domain.precision())
    assert got == pytest.approx(reference_distance(rows, domain), rel=1e-6)
    average.observe(np.full(size, np.nan))
    assert average.distance(domain, domain.precision()) == got, "what is not finite says nothing"


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 150), min_size=1, max_size=4), st.integers(0, 99), st.booleans())
def test_many_inputs_at_once_count_as_one_after_the_other(
    counts: list[int], seed: int, with_a_domain: bool
) -> None:
    rng = np.random.default_rng(seed)
    domain = Domain.of(rng.normal(size=(50, 6)))
    precision = domain.precision()
    together, alone = InputAverage(6), InputAverage(6)
    for count in counts:
        rows = rng.normal(size=(count, 6)) * rng.uniform(0.1, 3) + rng.uniform(0, 5)
        rows[rng.random(count) < 0.1, 2] = np.nan
        expected = []
        for row in rows:
            alone.observe(row)
            if np.isfinite(row).all():
                expected.append(alone.distance(domain, precision))
        if with_a_domain:
            np.testing.assert_allclose(together.distances(rows, domain, precision), expected, rtol=1e-8)
        else:
            together.observe_all(rows)
        assert together.distance(domain, precision) == pytest.approx(
            alone.distance(domain, precision), rel=1e-8
        )


@pytest.mark.parametrize("size", [1, 5])
def test_the_monitor_judges_a_batch_as_it_would_its_inputs(size: int) -> None:
    rng = np.random.default_rng(size)
    domain = Domain.of(rng.normal(size=(50, 6)))
    batches, alone = DriftMonitor(12.0), DriftMonitor(12.0)
    for monitor in (batches, alone):
        monitor.enter(domain)
    found = set()
    for shift in (0.0, 4.0, 0.0, 1.0, 6.0, 0.0, 0.0):
        rows = (rng.normal(size=(4 * size, 6)) + shift).astype(np.float32)
        batches.observe(rows)
        for row in rows:
            alone.observe(row[None])
        assert batches.drifted == alone.drifted
        found.add(batches.drifted)
    assert found == {True, False}


def test_one_camera_on_one_scene_is_within_an_environment_of_many() -> None:
    rng = np.random.default_rng(3)
    scenes = rng.normal(size=(400, 8))
    domain = Domain.of(scenes[:100])
    precision = domain.precision()
    farthest = []
    for scene in scenes[100:140]:
        average = InputAverage(8)
        for _ in range(60):
            average.observe(scene + 0.01 * rng.normal(size=8))
        farthest.append(average.distance(domain, precision))
    assert np.mean(np.array(farthest) > 36) < 0.05, "as one draw of it, not as sixty"


@pytest.mark.parametrize(
    ("corruption", "severity"), [("gaussian_noise", 4), ("motion_blur", 3), ("fog", 3), ("snow", 5)]
)
def test_real_corruptions_are_told_from_clean_images_within_a_few(corruption: str, severity: int) -> None:
    digits = load_digits().test_images
    clean = input_statistics(DIGITS_PREPROCESSING(digits[:96]))
    domain = Domain.of(clean)
    precision = domain.precision()
    average = InputAverage(clean.shape[1])
    for row in input_statistics(DIGITS_PREPROCESSING(digits[200:400])):
        average.observe(row)
        assert average.distance(domain, precision) < 36
    changed = corrupt_images(digits[400:420], corruption, severity, seed=1)
    drifted = []
    for row in input_statistics(DIGITS_PREPROCESSING(changed)):
        average.observe(row)
        drifted.append(average.distance(domain, precision) > 36)
    assert all(drifted[8:])


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 80), min_size=2, max_size=12), st.integers(0, 99))
def test_distances_follow_the_formula_from_domain_to_domain(counts: list[int], seed: int) -> None:
    """What was compared with one domain counts when another is entered, in whatever pieces it came."""
    rng = np.random.default_rng(seed)
    domains = [Domain.of(rng.normal(size=(50, 4)) + 3 * at) for at in range(3)]
    precisions = [domain.precision() for domain in domains]
    average, history = InputAverage(4), np.empty((0, 4))
    for at, count in enumerate(counts):
        which = at // 2 % 3
        rows = rng.normal(size=(count, 4)) * rng.uniform(0.1, 3) + rng.uniform(0, 5)
        history = np.concatenate([history, rows])
        if at % 5 == 4:  # without a domain in between
            average.observe_all(rows)
            continue
        got = average.distances(rows, domains[which], precisions[which])
        assert len(got) == count
        assert got[-1] == pytest.approx(reference_distance(history, domains[which]), rel=1e-6)
        if count > 1:
            assert got[0] == pytest.approx(reference_distance(history[: 1 - count], domains[which]), rel=1e-6)


def test_with_an_input_that_says_nothing_what_came_before_is_judged() -> None:
    rng = np.random.default_rng(1)
    monitor = DriftMonitor(36.0)
    monitor.observe((rng.normal(size=(40, 4)) + 9).astype(np.float32))
    monitor.enter(Domain.of(rng.normal(size=(50, 4))))
    assert not monitor.drifted
    monitor.observe(np.full((1, 4), np.nan, np.float32))
    assert monitor.drifted
