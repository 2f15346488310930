"""Shares of what samples were drawn from, where they were drawn with different probabilities."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cema._util.proportion import Weighted, proportion, weighted_proportion


@given(st.integers(1, 3000), st.sampled_from([1e-6, 0.01, 0.3, 1.0]), st.data())
def test_equal_weights_are_no_weights(samples: int, share: float, data: st.DataObject) -> None:
    matching = data.draw(st.integers(0, samples))
    weight = 1 / share
    sums = Weighted(samples, samples * weight, samples * weight**2, matching * weight, matching * weight**2)
    found, expected = weighted_proportion(sums), proportion(samples, matching)
    for name in ("samples", "share", "standard_error", "low", "high"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=1e-6, abs=1e-9)


@given(st.lists(st.tuples(st.floats(1e-6, 1), st.booleans()), max_size=30))
def test_the_interval_holds_the_share_whatever_the_weights(draws: list[tuple[float, bool]]) -> None:
    found = weighted_proportion(Weighted.of(draws))
    assert 0 <= found.low <= found.share + 1e-12
    assert found.share - 1e-12 <= found.high <= 1
    assert found.samples == len(draws)
    if draws:
        few = proportion(len(draws), sum(matches for _, matches in draws))
        if len({share for share, _ in draws}) > 1 and 0 < found.share < 1:
            assert found.high - found.low >= (few.high - few.low) * 0.1
    else:
        assert found == proportion(0, 0)


def test_sums_add_up() -> None:
    first, second = [(0.1, True), (0.5, False)], [(1.0, True)]
    assert Weighted.of(first).plus(Weighted.of(second)) == Weighted.of([*first, *second])


@pytest.mark.parametrize(("agree", "share"), [((0.9, 0.5), (0.01, 0.1)), ((0.98, 0.7), (0.05, 0.02))])
def test_the_interval_covers_the_truth_where_weights_and_kind_go_together(
    agree: tuple[float, float], share: tuple[float, float]
) -> None:
    """Two devices, of which one agrees more and is drawn more rarely."""
    rng = np.random.default_rng(0)
    size, runs, covered, errors = 10_000, 600, 0, []
    for _ in range(runs):
        matches = [rng.random(size) < p for p in agree]
        truth = float(np.concatenate(matches).mean())
        draws = [
            (p, bool(kind))
            for kinds, p in zip(matches, share, strict=True)
            for kind in kinds[rng.random(size) < p]
        ]
        found = weighted_proportion(Weighted.of(draws))
        covered += found.low <= truth <= found.high
        errors.append(found.share - truth)
    assert 0.93 <= covered / runs <= 0.99, "Kish's number makes it a little wider than it need be"
    assert abs(np.mean(errors)) < 4 * np.std(errors) / runs**0.5, "no bias"
