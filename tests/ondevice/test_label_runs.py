"""How far a stream's latest images can be taken for independent."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cema.ondevice.label_runs import LabelRuns


def expected(labels: np.ndarray, classes: int) -> float:
    p = np.bincount(labels, minlength=classes) / len(labels)
    chance = (p**2).sum()
    r = max(0.0, ((labels[1:] == labels[:-1]).mean() - chance) / (1 - chance))
    return float(((1 - r) / (1 + r)) ** 2)


@pytest.mark.parametrize("run", [1, 3, 50])
@pytest.mark.parametrize("call", [1, 7, 64])
def test_it_is_the_formula(run: int, call: int) -> None:
    labels = np.repeat(np.random.default_rng(0).integers(0, 5, 400), run)[:400]
    runs = LabelRuns(5)
    for start in range(0, 400, call):
        runs.observe(labels[start : start + call])
    assert runs.trust() == pytest.approx(expected(labels, 5), rel=1e-9)


def test_a_biased_model_on_a_shuffled_stream_is_trusted_and_runs_are_not() -> None:
    rng = np.random.default_rng(1)
    shuffled, in_runs = LabelRuns(10), LabelRuns(10)
    labels = rng.choice(10, 1000, p=[0.82, *[0.02] * 9])
    shuffled.observe(labels)
    assert shuffled.trust() > 0.75
    in_runs.observe(np.sort(rng.integers(0, 10, 1000)))
    assert in_runs.trust() < 1e-3


def test_older_images_are_forgotten() -> None:
    runs, rng = LabelRuns(4, memory=64), np.random.default_rng(2)
    runs.observe(np.zeros(1000, np.int64))
    assert runs.trust() == 0.0
    later = rng.integers(0, 4, 160)
    runs.observe(later)
    # Blocks of 32 are forgotten as a whole: between 64 and 95 images are left.
    left = [expected(later[-count:], 4) for count in range(64, 96)]
    assert min(abs(runs.trust() - trust) for trust in left) < 0.02
    assert runs.trust() > 0.3


def test_before_anything_is_known() -> None:
    runs = LabelRuns(3)
    assert runs.trust() == 1.0
    runs.observe(np.array([1]))
    runs.observe(np.empty(0, np.int64))
    assert runs.trust() == 1.0
    runs.observe(np.ones(10, np.int64))
    assert runs.trust() == 1.0
    runs.observe(np.ones(30, np.int64))
    assert runs.trust() == 0.0


@given(st.lists(st.integers(0, 3), max_size=300), st.integers(1, 80))
def test_it_is_a_share(labels: list[int], memory: int) -> None:
    runs = LabelRuns(4, memory=memory)
    for label in labels:
        runs.observe(np.array([label]))
        assert 0.0 <= runs.trust() <= 1.0


@pytest.mark.parametrize("settings", [{"classes": 1}, {"classes": 2, "memory": 0}])
def test_settings_out_of_range_are_refused(settings: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=list(settings)[-1]):
        LabelRuns(**settings)
